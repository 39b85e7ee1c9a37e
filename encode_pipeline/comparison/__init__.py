"""Is a new version fit to take the place of the promoted one? Some samples decoded, channels measured, samples counted.

    checks.py    what is asked of a new version, and what of it it fails
    counts.py    whether every sample of the old version is in the new, tar by tar
    samples.py   some samples as both versions have them, decoded by their VAEs, beside the source's own view
    page.py      the page: source, old and new side by side
    run.py       all of it in order, kept in the new version's folder

Needs the extras `encode` and `report`, and a GPU to be quick about a large VAE.
"""
