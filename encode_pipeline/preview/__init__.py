"""A look at a latent store: some of its samples beside their pictures, and how its channels are spread.

    stored.py        which samples are shown, and what the store has of them
    origins.py       the pictures they came from, and their views made again
    decoder.py       the pictures that latents stand for
    rgb.py           latents as three colours
    channels.py      mean and spread of each channel, against what the VAE promises
    show.py          one sample, ready to be shown
    page.py          the HTML page; style.css.j2 and sample.html.j2 serve the demo's report too
    contact_sheet.py the same as one picture
    svg.py           what charts are drawn with
    run.py           the verb: all of it in order

Needs the extras `encode` and `report`.
"""
