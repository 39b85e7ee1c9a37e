"""Evaluation of latent CLIP models. Import from its modules (`from eval.zero_shot import …`): `eval` is a builtin.

models.py          a checkpoint as a thing that embeds latents and texts
pictures.py        a data set of pictures by its address: class folders, CLIP_benchmark's layout, labelled tars
picture_set.py     what every layout comes to: parts of labelled or captioned pictures
encoded.py         such a set as a latent store, made once for each VAE
zero_shot.py       which class name fits a latent best
"""
