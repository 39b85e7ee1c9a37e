"""The contract between encoding, training and evaluation.

    spec.py      what the bytes mean, and the fingerprint that names a version
    storage.py   files on disk, S3, GCS or in memory; create-only publishing
    writer.py    a latent shard tar, reproducible byte for byte
    quantised.py a latent in a byte a number, for int8 stores
    reader.py    that tar by memory map, any sample in any order
    commit.py    the record that says a source shard is done
    version.py   one version: plans, commits, seal
    store.py     all versions, and which of them is promoted
    promotion.py    which version readers use, and which they used before
    lease.py     who is using a version
    freeing.py   versions that nobody needs any more
    audit.py     what was decided, by whom and why
    cache.py     shards as local files, checked on arrival
    bounded.py   a folder that processes share and that never holds too much
    verify.py    is every byte what the commits say
    shard_check.py  one shard against its commit, for every engine of verify
    command.py   settings and the command line that the three packages share

Nobody else parses a shard, a commit or a spec. Needs numpy, pyarrow, fsspec, pydantic and PyYAML;
never torch, ray or diffusers.
"""
