"""Evaluation of latent CLIP models. Import from its modules (`from eval.zero_shot import …`): `eval` is a builtin.

models.py          a checkpoint as a thing that embeds latents and texts
pictures.py        a data set of pictures by its address: class folders, CLIP_benchmark's layout, labelled tars
picture_set.py     what every layout comes to: parts of labelled or captioned pictures
encoded.py         such a set as a latent store, made once for each VAE
denoise.py         from noise to latents, in sigmas, with the randomness handed in
generator.py       any SDXL pipeline as a thing that tells the noise under a prompt; a tiny one (tiny_generator.py)
generated_imagenet.py  a data set that a generator has been over: a latent store of its own
labelled_latents.py    what it starts from
generate_shard.py      one tar of it, as the encoder's engines are handed it
zero_shot.py       which class name fits a latent best
"""
