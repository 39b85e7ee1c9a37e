"""On one CUDA GPU: the encoder, the pipeline around it, steps of training and steered generation, within minutes.

Models have the real sizes and random weights: their speed is the real one's, what they make means nothing. `run.py`
goes through the parts; each of them is one file.
"""
