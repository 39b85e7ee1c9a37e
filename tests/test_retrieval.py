"""Retrieval against CLIP_benchmark's algorithm, re-derived here with whole matrices; and repeated captions."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from encode_pipeline.latents.command import CheckFailed, RequestError
from encode_pipeline.latents.spec import LatentSpec
from eval import ranking
from eval.encoded import encoded
from eval.pictures import open_pictures
from eval.ranking import NEVER, search
from eval.retrieval import RetrievalConfig, retrieval
from tests.clips import latent_clip, pixel_clip
from tests.latent_stores import latent_store
from tests.picture_sets import captioned, picture, wds
from tests.tars import tar_of
from tests.test_eval_encoded import spec_of
from tests.test_train import store_of

COUNT = 24


@pytest.fixture
def pixel(tmp_path: Path) -> Path:
    return pixel_clip(tmp_path / "pixel")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Pictures with one to three captions each, in two tars of CLIP_benchmark's."""
    samples = [captioned("\n".join(captions_of(number)), f"s{number:03d}", number) for number in range(COUNT)]
    tars = [[member for sample in samples[start : start + 12] for member in sample] for start in (0, 12)]
    return wds(tmp_path / "set", *tars, classes=())


def captions_of(number: int) -> list[str]:
    return [f"the {thing} with number {number}" for thing in ("cat", "dog", "house")[: number % 3 + 1]]


def run(out: Path, checkpoint: Path, data: Path | str, **more: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    config = RetrievalConfig(checkpoint=checkpoint, data=data, out=out, cache=out.parent / "cache", **more)
    result = retrieval(config)
    assert json.loads((out / "result.json").read_text()) == result
    return result, [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def recalls(scores: torch.Tensor, positive: torch.Tensor) -> dict[str, float]:
    """CLIP_benchmark's: of every row, whether one of its positives is among its k best; texts are rows."""
    found = {}
    for name, table, right in (("image", scores, positive), ("text", scores.T, positive.T)):
        for k in (1, 5, 10):
            best = torch.nn.functional.one_hot(table.topk(k, dim=1).indices, table.shape[1]).sum(dim=1)
            found[f"{name}_retrieval_recall@{k}"] = ((best * right).sum(dim=1) > 0).float().mean().item()
    return found


def test_recalls_are_clip_benchmarks_item_by_item(pixel: Path, pictures: Path, tmp_path: Path) -> None:
    result, told = run(tmp_path / "out", pixel, pictures, batch_size=5)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{pixel}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{pixel}")
    captions = [(number, caption) for number in range(COUNT) for caption in captions_of(number)]
    owners = torch.tensor([number for number, _ in captions])
    with torch.no_grad():
        images = [preprocess(Image.open(io.BytesIO(picture(number))).convert("RGB")) for number in range(COUNT)]
        images_emb = F.normalize(model.eval().encode_image(torch.stack(images)), dim=-1)
        texts_emb = F.normalize(model.encode_text(tokenizer([caption for _, caption in captions])), dim=-1)
    scores = texts_emb @ images_emb.T
    positive = owners[:, None] == torch.arange(COUNT)
    assert result["metrics"] == pytest.approx(recalls(scores, positive))
    ranks = [
        (row.argsort(descending=True) == owner).nonzero().item() + 1 for row, owner in zip(scores, owners, strict=True)
    ]
    assert [rank for line in told for rank in line["image_ranks"]] == ranks
    firsts = [
        (owners[column.argsort(descending=True)] == n).nonzero()[0].item() + 1 for n, column in enumerate(scores.T)
    ]
    assert [line["text_rank"] for line in told] == firsts
    assert [line["captions"] for line in told] == [captions_of(number) for number in range(COUNT)]
    assert (result["n"], result["captions"], result["repeated_captions"]) == (COUNT, len(captions), 0)
    assert (result["task"], result["way"]) == ("zeroshot_retrieval", "pixels")
    for name, (low, high) in result["intervals"].items():
        assert 0 <= low <= result["metrics"][name] <= high <= 1


def test_blocks_of_any_size_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equally near ones too, of which the first comes first; and one picture that has no features."""
    rng = torch.Generator().manual_seed(0)
    pictures, captions = (torch.randint(-2, 3, (n, 4), generator=rng).float() for n in (9, 25))  # exact sums
    owners = np.sort(np.random.default_rng(0).integers(0, 10, 25))
    rows = np.array([0, 1, 2, -1, 3, 4, 5, 6, 7, 8])
    found = search(pictures, captions, rows, owners)
    scores = (captions @ pictures.T).numpy()
    for caption, owner in enumerate(owners):
        order = np.argsort(-scores[caption], kind="stable").tolist()
        assert found.pictures[caption] == (NEVER if rows[owner] < 0 else order.index(rows[owner]))
    for number, row in enumerate(rows):
        order = owners[np.argsort(-scores[:, row], kind="stable")].tolist()
        assert found.captions[number] == (NEVER if row < 0 or number not in order else order.index(number))
    for size in (1, 26, 60):
        monkeypatch.setattr(ranking, "SCORES_AT_ONCE", size)
        again = search(pictures, captions, rows, owners)
        assert np.array_equal(again.pictures, found.pictures) and np.array_equal(again.captions, found.captions)


def test_a_store_is_searched_by_its_captions_and_repeated_ones_are_said(spec: LatentSpec, tmp_path: Path) -> None:
    version = latent_store(
        tmp_path / "store", tmp_path / "scratch", spec, [6, 5], ["a cat", "a dog", "a bird", "a cow"]
    )
    checkpoint = latent_clip(tmp_path / "clip.pt", spec)
    result, told = run(tmp_path / "out", checkpoint, store_of(version), view=1)
    assert (result["n"], result["captions"], result["repeated_captions"], result["way"]) == (11, 11, 11, "encoded")
    assert result["not_comparable"][-1] == "view 1 of the pictures, not the plain one"
    # Of so many equal captions a picture's own is one: the right word in the wrong place is wrong.
    assert result["metrics"]["image_retrieval_recall@1"] < 0.5
    assert sorted(line["captions"][0] for line in told).count("a cat") == 4


def test_a_damaged_picture_is_no_smaller_denominator(pixel: Path, tmp_path: Path) -> None:
    samples = [captioned("\n".join(captions_of(number)), f"s{number}", number) for number in range(4)]
    samples[1][0] = ("s1.png", b"no picture")
    data = wds(tmp_path / "set", [member for sample in samples for member in sample], classes=())
    with pytest.raises(CheckFailed, match=r"s1: UnidentifiedImageError.*; 1 of 4 pictures are damaged, all listed in"):
        run(tmp_path / "out", pixel, data)
    result, told = run(tmp_path / "out", pixel, data, damaged="wrong")
    assert (result["n"], result["damaged"], result["captions"]) == (4, 1, 7)
    assert (told[1]["text_rank"], told[1]["image_ranks"]) == (None, [None, None])
    assert result["metrics"]["text_retrieval_recall@10"] == pytest.approx(3 / 4)
    assert result["metrics"]["image_retrieval_recall@10"] == pytest.approx(5 / 7)


def test_a_store_that_has_lost_captions_is_refused(small_vae: Path, tmp_path: Path) -> None:
    """The captions of a refused picture are not in a store: recall without them would be of fewer than there are."""
    samples = [captioned("one", "a", 1), captioned("two", "b", 2), [("c.png", picture(3)[:200]), ("c.txt", b"three")]]
    pictures = open_pictures(
        str(wds(tmp_path / "set", [member for sample in samples for member in sample], classes=()))
    )
    spec = spec_of(small_vae)
    version = encoded(pictures, spec, None, tmp_path / "cache")
    model = latent_clip(tmp_path / "clip.pt", spec)
    with pytest.raises(CheckFailed, match=r"c: no caption \(a store keeps none of a refused picture\)"):
        run(tmp_path / "out", model, store_of(version), damaged="wrong")


def test_pictures_without_captions_are_refused(pixel: Path, tmp_path: Path) -> None:
    (tmp_path / "bare.tar").write_bytes(tar_of([("a.png", picture(0)), ("a.cls", b"0")]))
    with pytest.raises(RequestError):
        run(tmp_path / "out", pixel, tmp_path / "bare.tar")
