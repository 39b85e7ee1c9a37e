"""What a process of several does in `test_train_ranks`: reads its rows of some batches, and says what it read."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from train.config import TrainConfig, architecture_of
from train.data import open_data
from train.distributed import ranks_of_torchrun
from train.model import tokenizer_for

BATCHES = 12
"""Of twelve samples: three epochs of 48."""


def main(model: str, data: str, out: Path, workers: int) -> None:
    """Writes the samples of each global batch, and a sum over their latents and tokens."""
    config = TrainConfig(
        model=model, data=data, out=out.parent, steps=BATCHES, batch_size=12, workers=workers, mix=2, cache=out.parent
    )
    found = []
    with ranks_of_torchrun() as ranks:
        latents = open_data(config, tokenizer_for(architecture_of(model)))
        for batch in latents.batches(0, BATCHES, ranks.rows(12)):
            read = [*batch.ids.tolist(), float(batch.latents_bchw.double().sum()), int(batch.tokens_bl.sum())]
            parts = ranks.collect(read)
            ids = [sample for part in parts for sample in part[:-2]]
            found.append({"ids": ids, "latents": sum(part[-2] for part in parts), "tokens": sum(p[-1] for p in parts)})
        planned = [latents.batch_ids(number).tolist() for number in range(BATCHES)]
        assert [batch["ids"] for batch in found] == planned
        assert all(np.isfinite(batch["latents"]) for batch in found)
        if ranks.is_first:
            out.write_text(json.dumps(found))
        ranks.wait()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
