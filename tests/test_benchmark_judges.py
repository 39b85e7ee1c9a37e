"""The judges of pictures: what they see is what their own libraries see, asked as the official scorers ask."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from encode_pipeline.latents.command import RequestError
from eval.benchmarks.aesthetic import AestheticHead
from eval.benchmarks.clip_score import clip_scores, features, open_pixel_clip
from eval.benchmarks.colours import ColourSense, cut_out
from eval.benchmarks.detection import NAMES, Detector, instances, open_detector, prepared
from eval.benchmarks.geneval_rules import COLOURS, Found
from eval.benchmarks.vqa import Blip, open_blip
from tests.clips import latent_clip, pixel_clip
from tests.small_judges import COCO, WORDS, aesthetic_state, small_blip, small_detector, write_picture
from tests.test_eval_encoded import spec_of


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Blip:
    return open_blip(str(small_blip(tmp_path_factory.mktemp("blip"))))


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    return open_detector(str(small_detector(tmp_path_factory.mktemp("detector"))))


def logits_of(**chances: float) -> torch.Tensor:
    """Of one query: these chances for classes, the rest for none of them."""
    values = torch.full((len(NAMES) + 1,), 1e-9)
    for name, chance in chances.items():
        values[NAMES.index(name)] = chance
    values[-1] = 1 - sum(chances.values())
    return values.log()


def test_objects_from_queries_placed_by_hand() -> None:
    masks = torch.full((4, 8, 12), -4.0)
    masks[0, 2:5, 3:9] = 2.0
    masks[1, :, :] = 1.0
    masks[2, 7, 11] = 3.0
    classes = torch.stack([logits_of(dog=0.9), logits_of(dog=0.4, cat=0.35), logits_of(cup=0.8), logits_of(tie=0.99)])
    found = instances(classes, masks, (8, 12))
    assert {name: [one.box for one in objects] for name, objects in found.items()} == {
        "dog": [(3, 2, 9, 5), (0, 0, 12, 8)],
        "cat": [(0, 0, 12, 8)],
        "cup": [(11, 7, 12, 8)],  # the tie's mask is empty, and so it is none
    }
    sure = torch.sigmoid(torch.tensor([2.0, 1.0, 3.0])).tolist()
    expected = {"dog": [0.9 * sure[0], 0.4 * sure[1]], "cat": [0.35 * sure[1]], "cup": [0.8 * sure[2]]}
    for name, scores in expected.items():
        assert [one.score for one in found[name]] == pytest.approx(scores, rel=1e-4)
    assert found["dog"][0].mask.shape == (8, 12) and found["dog"][0].mask.sum() == 18
    doubled = instances(classes, masks, (16, 24))
    assert doubled["dog"][1].box == (0, 0, 24, 16) and doubled["dog"][0].mask.shape == (16, 24)


def test_objects_are_those_of_transformers_where_it_looks_at_the_same_pixels() -> None:
    from transformers import Mask2FormerImageProcessorPil

    torch.manual_seed(0)
    classes = 4 * torch.randn(100, len(NAMES) + 1)
    masks = F.interpolate(3 * torch.randn(1, 100, 12, 12) - 1, size=(384, 384), mode="bilinear")[0]
    ours = instances(classes, masks, (384, 384))
    output = SimpleNamespace(class_queries_logits=classes[None], masks_queries_logits=masks[None])
    theirs = Mask2FormerImageProcessorPil().post_process_instance_segmentation(
        output, threshold=0.3, return_binary_maps=True
    )[0]
    by_them = [
        (NAMES[segment["label_id"]], segment["score"], int(mask.sum()))
        for segment, mask in zip(theirs["segments_info"], theirs["segmentation"], strict=True)
    ]
    by_us = [
        (name, one.score, int(one.mask.sum())) for name, found in ours.items() for one in found if one.score >= 0.3
    ]
    assert len(by_us) > 20
    for mine, other in zip(sorted(by_us), sorted(by_them), strict=True):
        assert mine == (other[0], pytest.approx(other[1], abs=1e-5), other[2])


@pytest.mark.parametrize(
    ("height", "width", "seen", "padded"),
    [(512, 512, (800, 800), (800, 800)), (600, 1200, (667, 1333), (672, 1344)), (1000, 400, (1333, 533), (1344, 544))],
)
def test_a_picture_is_seen_as_large_as_mmdet_makes_it(
    height: int, width: int, seen: tuple[int, int], padded: tuple[int, int]
) -> None:
    pixels = torch.full((height, width, 3), 124, dtype=torch.uint8)
    picture, high, wide = prepared(pixels)
    assert (high, wide) == seen and picture.shape == (1, 3, *padded)
    assert picture[0, 0, 0, 0].item() == pytest.approx((124 - 123.675) / 58.395, rel=1e-3)
    assert not picture[:, :, high:].any() and not picture[:, :, :, wide:].any()


def test_the_detector_finds_the_same_alone_as_before(detector: Detector, tmp_path: Path) -> None:
    """Random weights see many things; what is seen belongs to the picture, in its own size."""
    pictures = [Image.open(write_picture(tmp_path / f"{n}.png", n, (48 + 16 * n, 64))) for n in range(2)]
    with torch.inference_mode():
        found = [detector.objects(picture) for picture in pictures]
        again = detector.objects(pictures[0])
    assert again == found[0] != found[1] and found[0]
    for picture, objects in zip(pictures, found, strict=True):
        for one in (one for each in objects.values() for one in each):
            assert one.mask.shape == (picture.height, picture.width)
            assert (
                one.mask[int(one.box[1]) : int(one.box[3]), int(one.box[0]) : int(one.box[2])].sum() == one.mask.sum()
            )
    assert any("mmdet" in reason for reason in detector.judge.not_comparable)
    assert any("small model" in reason for reason in detector.judge.not_comparable)


def test_a_detector_of_other_classes_is_refused(tmp_path: Path) -> None:
    labels = list(COCO.values())
    with pytest.raises(RequestError, match="0 of 80 are COCO's 80"):
        open_detector(str(small_detector(tmp_path / "nameless", labels=[f"LABEL_{n}" for n in range(80)])))
    with pytest.raises(RequestError, match="is not where COCO has it"):
        open_detector(str(small_detector(tmp_path / "turned", labels=labels[::-1])))
    with pytest.raises(RequestError, match="79 of 81 are COCO's 80|78 of 81 are COCO's 80"):
        open_detector(str(small_detector(tmp_path / "more", labels=[*labels, "background"])))


def test_missing_and_strange_weights_are_refused_by_name(tmp_path: Path) -> None:
    folder = small_detector(tmp_path / "detector")
    file = folder / "model.safetensors"
    state = load_file(file)
    save_file({name: value for name, value in state.items() if name != "class_predictor.bias"}, file, {"format": "pt"})
    with pytest.raises(RequestError, match=r"class_predictor\.bias is missing"):
        open_detector(str(folder))
    window = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self.relative_position_index"
    published = {**state, window: torch.zeros(16, 16, dtype=torch.long)}  # as published weights still have it
    save_file(published, file, {"format": "pt"})
    assert open_detector(str(folder)).judge.provenance["weights_sha256"]
    save_file({**state, "class_predictor.more": torch.zeros(1)}, file, {"format": "pt"})
    with pytest.raises(RequestError, match=r"class_predictor\.more is unexpected"):
        open_detector(str(folder))
    with pytest.raises(RequestError, match="cannot be opened"):
        open_detector(str(tmp_path / "nothing"))
    with pytest.raises(RequestError, match="missing or unexpected weights|cannot be opened"):
        open_blip(str(folder))


def test_blip_answers_as_transformers_does_when_asked_one_by_one(blip: Blip, tmp_path: Path) -> None:
    """`generate` is transformers' own way from picture and question to logits; it is told the first token alone."""
    pictures = [Image.open(write_picture(tmp_path / f"{n}.png", n)).convert("RGB") for n in range(3)]
    asked = [["a green bench?", "a bowl?"], [], ["the red square apple and a round bowl?", "a bowl?"]]
    with torch.inference_mode():
        together = blip.chances(pictures, asked)
        for picture, questions, chances in zip(pictures, asked, together, strict=True):
            assert chances == pytest.approx([_alone(blip, picture, question) for question in questions], abs=1e-5)
        assert blip.chances(pictures, [[], [], []]) == [[], [], []]
    flat = [chance for chances in together for chance in chances]
    assert len({round(chance, 3) for chance in flat}) == 4  # the pictures matter, and the questions


def _alone(blip: Blip, picture: Image.Image, question: str) -> float:
    small = np.asarray(picture.resize((32, 32), Image.Resampling.BICUBIC)).astype(np.float32) / 255
    mean, spread = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    pixels = torch.from_numpy(((small - np.array(mean)) / np.array(spread)).astype(np.float32)).permute(2, 0, 1)[None]
    tokens = blip.words(question, return_tensors="pt")
    tokens.input_ids[0, 0] = len(WORDS) + 1  # after BERT's words [DEC], then [ENC]
    said = blip.judge.model.generate(
        tokens.input_ids,
        pixels,
        tokens.attention_mask,
        max_new_tokens=1,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    chances = said.logits[0][0].softmax(dim=0)
    yes, no = chances[WORDS.index("yes")].item(), chances[WORDS.index("no")].item()
    return yes / (yes + no)


def test_a_blip_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    from transformers import BertTokenizer

    folder = small_blip(tmp_path / "blip")
    fewer = {word: number for number, word in enumerate(WORDS[:-3])}
    BertTokenizer(vocab=fewer).save_pretrained(folder)
    with pytest.raises(RequestError, match="its tokenizer knows"):
        open_blip(str(folder))
    with pytest.raises(RequestError, match="does not know yes and no"):
        open_blip(str(small_blip(tmp_path / "wordless", words=[*WORDS[:5], *"bcdef"])))


def test_a_colour_is_that_of_the_object_alone(tmp_path: Path) -> None:
    picture = Image.new("RGB", (32, 32), "blue")
    picture.paste("red", (8, 8, 24, 20))
    mask = np.zeros((32, 32), bool)
    mask[8:20, 8:16] = True
    alone = cut_out(picture, Found(0.9, (8.0, 8.0, 24.0, 20.0), mask))
    assert alone.size == (16, 12)
    assert [alone.getpixel((x, 5)) for x in (0, 7, 8, 15)] == [(255, 0, 0)] * 2 + [(153, 153, 153)] * 2
    assert cut_out(picture, Found(0.9, (0.0, 0.0, 10.0, 10.0))).getpixel((0, 0)) == (0, 0, 255)

    clip = open_pixel_clip(str(pixel_clip(tmp_path / "clip")))
    sense = ColourSense(clip)
    objects = [Found(0.9, (8.0, 8.0, 24.0, 20.0), mask), Found(0.8, (0.0, 0.0, 30.0, 30.0), ~mask)]
    with torch.inference_mode():
        told = sense(picture, "car", objects)
        for colour, one in zip(told, objects, strict=True):
            image = clip.embed_pixels(clip.prepare(cut_out(picture, one))[None])
            rows = []
            for name in COLOURS:
                texts = [f"a photo of a {name} car", f"a photo of a {name}-colored car", f"a photo of a {name} object"]
                rows.append(F.normalize(clip.embed_texts(texts).mean(dim=0), dim=0))
            assert colour == COLOURS[int((torch.stack(rows) @ image[0]).argmax())]


def test_clip_scores_are_cosines_of_pairs(tmp_path: Path, small_vae: Path) -> None:
    clip = open_pixel_clip(str(pixel_clip(tmp_path / "clip")))
    pictures = [Image.open(write_picture(tmp_path / f"{n}.png", n)) for n in range(3)]
    texts = ["a cat", "a dog", "a very long text " * 40]
    with torch.inference_mode():
        rows = features(clip, pictures)
        scores = clip_scores(clip, rows, texts)
        square = rows @ clip.embed_texts(texts).T
    assert scores == pytest.approx(square.diag().tolist(), abs=1e-6)
    reader = latent_clip(tmp_path / "latent.pt", spec_of(small_vae))
    with pytest.raises(RequestError, match="a CLIP of pixels is needed"):
        open_pixel_clip(str(reader))


def test_the_aesthetic_head_is_laions_network(tmp_path: Path) -> None:
    state = aesthetic_state()
    torch.save(state, tmp_path / "head.pth")
    save_file(state, tmp_path / "head.safetensors")
    rows = F.normalize(torch.randn(5, 16), dim=1).requires_grad_()
    expected = rows
    for place in (0, 2, 4, 6, 7):
        expected = expected @ state[f"layers.{place}.weight"].T + state[f"layers.{place}.bias"]
    for name in ("head.pth", "head.safetensors"):
        head = AestheticHead.load(tmp_path / name)
        scores = head(rows)
        assert scores.shape == (5,) and torch.allclose(scores, expected[:, 0], atol=1e-5)
        assert head.not_comparable and "not LAION's of (768, 1024, 128, 64, 16, 1)" in head.not_comparable[0]
    scores.sum().backward()
    assert rows.grad is not None and rows.grad.abs().sum() > 0
    torch.save(aesthetic_state((768, 1024, 128, 64, 16, 1)), tmp_path / "whole.pth")
    assert not AestheticHead.load(tmp_path / "whole.pth").not_comparable
    with pytest.raises(RequestError, match="reads features of 16 numbers"):
        head(torch.randn(2, 12))


class Runs:
    """What must not be run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this ran",))


def test_what_is_no_aesthetic_head_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = aesthetic_state()
    torch.save({name: value for name, value in state.items() if name != "layers.4.bias"}, tmp_path / "less.pth")
    torch.save({**state, "layers.8.bias": torch.zeros(1)}, tmp_path / "more.pth")
    torch.save({**state, "layers.4.weight": torch.zeros(6, 5)}, tmp_path / "odd.pth")
    (tmp_path / "runs.pth").write_bytes(pickle.dumps({**state, "more": Runs()}))
    for name, said in (
        ("less", r"layers\.4\.bias is missing"),
        ("more", r"layers\.8\.bias is unexpected"),
        ("odd", "size mismatch"),
        ("runs", "read safely"),
        ("none", "no such checkpoint"),
    ):
        with pytest.raises(RequestError, match=said):
            AestheticHead.load(tmp_path / f"{name}.pth")
    assert "this ran" not in capsys.readouterr().out
