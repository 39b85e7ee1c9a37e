"""Image tars to VAE latents, exactly once.

    source tars -> Sample -> View xN -> latents -> shard tar -> commit -> manifest
    sources.py     read.py   augment.py  vae.py     latents/writer   latents/store

`encode_shard.py` joins these into the one loop; `run_local.py` and `on_ray/` call it, or whatever other work
(`work.py`) makes latents of a shard, for every shard that has no commit yet. `latents/` is the contract that
`train/` and `eval/` read by.
Importing this package loads nothing heavy.
"""
