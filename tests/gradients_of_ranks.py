"""What a process of several does in `test_train_ranks`: its share of a batch, and the gradient that all agree on."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from tests.test_train_step import gradients, small_batch, small_model
from train.distributed import ranks_of_torchrun
from train.loss import ContrastiveLoss
from train.step import Towers, backward, in_pieces

CASES = [*product(("clip", "siglip"), (False, True), (1, 4))]


def main(out: Path) -> None:
    """Writes the gradients of every case, by its name."""
    found = {}
    with ranks_of_torchrun() as ranks:
        for kind, soft, pieces in CASES:
            model = small_model()
            towers = Towers(DistributedDataParallel(model) if ranks.world > 1 else model, bfloat16=False)
            latents, tokens = small_batch(rows=32)
            tokens[8:16] = tokens[:8]  # captions that occur twice, in the hands of different processes
            rows = ranks.rows(len(latents))
            own = in_pieces(latents[rows.start : rows.stop], tokens[rows.start : rows.stop], pieces, 0, rows.start)
            contrast = backward(towers, own, ContrastiveLoss(ranks, kind, soft, block_logits=100))
            loss, right = ranks.sums(contrast.loss.item() / ranks.world, contrast.right.item())
            found[f"{kind}, {'soft' if soft else 'hard'}, {pieces} pieces"] = {
                **gradients(model),
                "loss": torch.tensor(loss),
                "right": torch.tensor(right),
            }
        if ranks.is_first:
            torch.save(found, out)
        ranks.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
