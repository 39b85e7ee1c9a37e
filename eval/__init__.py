"""Evaluation of latent CLIP models. Import from its modules (`from eval.zero_shot import …`): `eval` is a builtin.

models.py      a checkpoint as a thing that embeds latents and texts
zero_shot.py   which class name fits a latent best
"""
