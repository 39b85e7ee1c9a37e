"""Pictures of prompts, steered by rewards or as the generator makes them.

prompt_sets.py  the prompts: GenEval's, T2I-CompBench's, I2P's, the paper's three, or a line each
sampler.py      a generator set up to be steered: from noise to latents, and on to pixels
batches.py      some items from noise to all that is kept of them; previews.py the latents on the way, to look at
run.py          the verb: batch by batch, goes on after a kill; summary.py what it all comes to
paper.py        what the paper did, and in what a run differs from it
sld.py          the verb that makes such a folder by safe latent diffusion
folder.py       what is in a run's folder, and reading it back
"""
