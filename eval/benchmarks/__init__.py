"""What pictures of prompts are worth: the benchmarks' pictures, their scorers, and the way to the official ones.

pictures.py     the pictures to be judged: a run's, or anyone's in an official layout
export.py       a run in the layout that the official scorers read
"""
