"""Latent-CLIP training on a sealed latent store, with OpenCLIP's model, loss and tokenizer.

    config.py      what a run is told; recipes/ holds a YAML file for every model
    stores.py      the stores of a run: do they fit together, and how much of each
    order.py       which sample stands where: numbers alone
    tokenizer.py   OpenCLIP's tokenizer, for words of any length
    captions.py    captions into tokens, as the tokenizer gives them, faster
    prepare.py     a shard made ready: fetched, checked, indexed, tokenised, by processes ahead of need
    open_files.py  room for as many memory maps as that takes
    window.py      the shards that are read at a time, and what stands in for damaged ones
    quantised.py   latents of an int8 store, as a batch wants them
    data.py        manifest -> batches, the same ones for the same seed, from any step on
    model.py       an OpenCLIP model whose vision stem takes the store's latents
    text_tower.py  a text tower that begins where another OpenCLIP model ended
    flops.py       what a sample costs in arithmetic, and what a GPU could do
    describe.py    what a model is and costs, without making it
    loop.py        the training loop, top to bottom
    step.py        the exact gradient of a batch, in one piece or many, on one GPU or many
    loss.py        OpenCLIP's losses block by block, fair to captions that occur twice in a batch
    distributed.py the processes that train together, and what each may ask of all
    schedule.py    the learning rate over a run
    guard.py       ends a run whose loss is no number; stopping.py one that is told to end
    checkpoint.py  written whole or not at all, with the LatentSpec inside; resume.py goes on from one
    meter.py       how fast a run goes, and how much of the time it waits for data
    metrics.py     what a run says as it goes: JSON lines, the console, TensorBoard, wandb
    curves.py      the same as one picture
    zero_shot.py   labelled latents, class embeddings, who is right
    pickscore.py   fine-tuning on preference pairs, with preferences.py (pairs of latents) and pair_scores.py (the loss)
    launch.py      `make train`: a process for every GPU, or a short check
    export.py      a model as a folder for OpenCLIP (timm_layout.py says how) with a model_card.py, or for this project
    import_checkpoint.py  the authors' checkpoint, or OpenCLIP's, as one of ours

Of `encode_pipeline` it knows `latents/` alone; never ray, never diffusers.
"""
