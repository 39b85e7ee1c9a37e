"""Evaluation of CLIPs, latent or pixel. Import from its modules (`from eval.models import …`): `eval` is a builtin.

models.py      every CLIP behind one door: latent_models.py open_clip_models.py transformers_clip.py; baselines.py
clip.py        what they all can do: embed latents or pictures, and texts
zero_shot.py   which class name fits a latent best
"""
