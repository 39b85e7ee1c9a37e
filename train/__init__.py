"""Latent-CLIP training on a sealed latent store, with OpenCLIP's model, loss and tokenizer.

    config.py      what a run is told; recipes/ holds a YAML file for every model
    stores.py      the stores of a run: do they fit together, and how much of each
    order.py       which sample stands where: numbers alone
    prepare.py     a shard made ready: fetched, checked, indexed, tokenised, by processes ahead of need
    window.py      the shards that are read at a time, and what stands in for damaged ones
    data.py        manifest -> batches, the same ones for the same seed, from any step on
    model.py       an OpenCLIP model whose vision stem takes the store's latents
    loss.py        OpenCLIP's contrastive loss, fair to captions that occur twice in a batch
    checkpoint.py  written whole or not at all, with the LatentSpec inside
    loop.py        the training loop, top to bottom
    metrics.py     one JSON line every few steps

Of `encode_pipeline` it knows `latents/` alone; never ray, never diffusers.
"""
