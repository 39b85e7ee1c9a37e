"""Evaluation of CLIPs, latent or pixel. Import from its modules (`from eval.models import …`): `eval` is a builtin.

models.py       every CLIP behind one door: latent_models.py open_clip_models.py transformers_clip.py; baselines.py
clip.py         what they all can do: embed latents or pictures, and texts
pictures.py     a data set of pictures by its address: class folders, CLIP_benchmark's layout, labelled tars
picture_set.py  what every layout comes to: parts of labelled or captioned pictures
encoded.py      such a set as a latent store, made once for each VAE
stored.py       the pictures of a latent store
ways.py         the four ways from data to a model: pixels, encoded, direct, decoded
feed.py decoded.py  unit features, part by part; what a model reads of a picture
zero_shot.py    which class name fits a picture best
retrieval.py ranking.py  the picture of a caption, and a caption of a picture
evaluation.py parts.py result.py  what both are told, and how they come to a result, part by part
intervals.py    how far a score may be off by the luck of the draw
denoise.py      from noise to latents, in sigmas, with the randomness handed in
generator.py    any SDXL pipeline as a thing that tells the noise under a prompt; a tiny one (tiny_generator.py)
generated_imagenet.py  a data set that a generator has been over: a latent store of its own
labelled_latents.py    what it starts from; generate_shard.py one tar of it, as the encoder's engines are handed it
rewards.py      how well pictures do, on latents or pixels (seen_pixels.py), with gradients
reno.py         noise optimised towards a reward; steering/ what is steered by it
timing.py       what that takes, latents against pixels
benchmarks/     what such pictures are worth, by GenEval, T2I-CompBench and I2P; and the official scorers' layouts
report/         results side by side, the paper's beside ours
"""
