"""What pictures of prompts are worth: the benchmarks' pictures, their scorers, and the way to the official ones.

pictures.py     the pictures to be judged: a run's, or anyone's in an official layout
export.py       a run in the layout that the official scorers read
scoring.py      how every scorer comes to its result, part by part; judges.py its models, off the disk or the hub
geneval.py      GenEval's six tasks: geneval_rules.py over detection.py (Mask2Former) and colours.py (CLIP)
official_geneval.py official_compbench.py   what the benchmarks' own scorers said of an export
compbench.py    T2I-CompBench: vqa.py (BLIP) by compbench_rules.py, and clip_score.py
aesthetic.py    how pleasing a picture is
"""
