"""Captions into tokens: bit for bit those of OpenCLIP's tokenizer, whatever a caption is."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from copy import copy
from string import ascii_lowercase
from typing import Any

import numpy as np
import open_clip
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from encode_pipeline.read import MAX_TEXT_BYTES
from tests.steered_runs import published
from train import captions, tokenizer
from train.captions import CaptionTokens
from train.tokenizer import BoundedTokenizer, merged

OWN = open_clip.SimpleTokenizer(context_length=32)
TOKENS = CaptionTokens(BoundedTokenizer(context_length=32))
PIECES = [
    *("dog", "Dog's", "DON'T", "we'll", "a.b,c!", "3.14", "2022-01-05", "http://x.org/?a=1&b=2", "<start_of_text>"),
    *("<END_OF_TEXT>", "&amp;", "&amp;amp;", "&amp;amp;lt;", "&lt", "&#x27;", "&EACUTE;", "&notit", "<b>", "&"),
    *("café", "cafÃ©", "â€™", "’n", "“so”", "ﬁne", "ＬＯＵＤ", "İstanbul", "ſ", "'ſ", "Straße", "ΑΣ", "e\u0301", "Ã "),
    *("東京", "Ｕﾀｰﾝ", "🎉", "👩‍👩‍👧", "🇩🇪", "\ufeff", "\u200d", "\ufffc", "\u2028", "\u0085", "\xa0", "\u3000"),
    *("\x1b[31mred\x1b[0m", "\x1b", "\x00", "\x07", "\x1c", "\x1f", "\x7f", "\x0b", "\r\n", "\r", "\n", "\t", "\x80"),
    *("", "_", "#", "\\n", "½", "²", "Ⅷ", "١٢", "\U0001d173", "a" * 300, "é" * 80),
]


def check(texts: Sequence[str], tokens: CaptionTokens = TOKENS, own: Any = OWN) -> None:
    made = tokens(list(texts))
    assert made.dtype == np.dtype("<i4")
    assert np.array_equal(made, own(list(texts)).numpy())


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5))
@settings(max_examples=300, deadline=None)
def test_of_any_text(texts: list[str]) -> None:
    check(texts)


@given(st.lists(st.text(st.characters(max_codepoint=0x17F)), max_size=5))
@settings(max_examples=300, deadline=None)
def test_of_latin_letters_and_control_characters(texts: list[str]) -> None:
    check(texts)


@given(st.lists(st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(["", " ", "  "]))), max_size=4))
@example([[(piece, " ")] for piece in PIECES])
@settings(max_examples=500, deadline=None)
def test_of_all_that_tokenizers_mend(texts: list[list[tuple[str, str]]]) -> None:
    check(["".join(part for pair in pairs for part in pair) for pairs in texts])


def test_of_captions_as_they_are() -> None:
    check(
        [
            template(name)
            for name in open_clip.IMAGENET_CLASSNAMES
            for template in open_clip.OPENAI_IMAGENET_TEMPLATES[:3]
        ]
    )
    check(
        [
            "",
            " ",
            'Nike Air Max 90 "Infrared" - Men\'s Size 10.5 | eBay',
            "Sunset @ Santa Monica Beach (CA), 4K wallpaper #sunset #beach",
            "H&M Women&#39;s T-Shirt – Größe M – 100% Baumwolle™ ®",
            "50&#37; OFF!!! &quot;Best&quot; price: $19.99 / £15.00 / €17,90",
            "IMG_20190512_142233.jpg",
            "Ð¤Ð¾ÑÐ¾ — фото на память, Москва 2020 г.",
            "Schönes altes Haus… in der Nähe von Köln",
            "word " * 500,
            "x" * 2000,
        ]
    )


def test_of_the_benchmarks_prompts() -> None:
    geneval, compbench = published("geneval/evaluation_metadata.jsonl"), published("t2i_compbench")
    if geneval is None or compbench is None:
        pytest.skip("the prompts of GenEval and T2I-CompBench are not beside this project")
    check([line for file in sorted(compbench.glob("*.txt")) for line in file.read_text().splitlines()])
    check([json.loads(line)["prompt"] for line in geneval.read_text().splitlines()])


@pytest.mark.parametrize("length", [5, 30, 300])
def test_no_memory_grows_without_end(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of words, nor of the runs of letters in them, be they short or long."""
    monkeypatch.setattr(captions, "WORDS_KEPT", 20)
    monkeypatch.setattr(tokenizer, "RUNS_KEPT", 20)
    bounded = BoundedTokenizer(context_length=16)
    tokens = CaptionTokens(bounded)
    for start in range(0, 90, 3):
        pairs = (divmod(number, 26) for number in range(start, start + 3))
        runs = [f"n{ascii_lowercase[one]}{ascii_lowercase[other]}".ljust(length, "o") for one, other in pairs]
        texts = [f"{run} <start_of_text> {run}.5,{run} &amp;lt;{run}" for run in runs]
        check(texts, tokens, own=open_clip.SimpleTokenizer(context_length=16))
    assert tokens._words is not None
    for memory in (tokens._words, bounded.cache):
        assert len(memory) <= 20 and max(map(len, memory)) <= tokenizer.LONGEST_KEPT


LETTERS = [*"abenrst", "aaaaaaaa", "the", "ing", "er", "</w>", *map(chr, range(256, 260))]


@given(st.one_of(st.lists(st.sampled_from(LETTERS), min_size=1, max_size=120).map("".join), st.text("an", min_size=1)))
@settings(max_examples=500, deadline=None)
def test_a_run_of_letters_falls_into_the_parts_that_openclip_finds(letters: str) -> None:
    OWN.cache.pop(letters, None)
    assert merged(letters, OWN.bpe_ranks) == OWN.bpe(letters).split(" ")


def test_merges_in_any_order_are_those_of_openclip() -> None:
    """Also of ranks that no training gives, where a part can be made in two ways and merged again before the rest."""
    own = copy(OWN)
    for seed in range(300):
        rng = np.random.default_rng(seed)
        known = ["a", "b", "c", "a</w>", "b</w>", "c</w>"]
        pairs: list[tuple[str, str]] = []
        for _ in range(30):
            one, other = rng.choice([part for part in known if "<" not in part]), rng.choice(known)
            pairs.append((str(one), str(other)))
            known.append(f"{one}{other}")
        own.bpe_ranks = {pairs[number]: rank for rank, number in enumerate(rng.permutation(len(pairs)))}
        for _ in range(10):
            letters = "".join(rng.choice(list("abc"), rng.integers(1, 40)))
            own.cache = {}
            assert merged(letters, own.bpe_ranks) == own.bpe(letters).split(" ")


def test_a_word_of_any_length_takes_no_more_than_its_share() -> None:
    """Of a hostile caption, as long as the encoder lets one be, each letter is looked at a few times."""

    class Counting(dict[tuple[str, str], int]):
        asked = 0

        def get(self, *wanted: Any) -> Any:
            self.asked += 1
            return super().get(*wanted)

    letters = "".join(np.random.default_rng(0).choice(list(ascii_lowercase), MAX_TEXT_BYTES))
    for word in (letters, "a" * MAX_TEXT_BYTES):
        ranks = Counting(OWN.bpe_ranks)
        merged(word, ranks)
        assert 0 < ranks.asked < 6 * len(word)
    check([letters[:3000], "a" * 3000, f"x{letters[:2000]} y"])


def test_it_goes_to_worker_processes_as_it_is() -> None:
    TOKENS(["a word"])
    check(["a word, and another"], pickle.loads(pickle.dumps(TOKENS)))


@pytest.mark.parametrize(
    "settings",
    [{"clean": "canonicalize"}, {"clean": "whitespace"}, {"additional_special_tokens": ["two words"]}],
    ids=lambda settings: next(iter(settings)),
)
def test_another_kind_of_tokenizer_is_asked_itself(settings: dict[str, Any]) -> None:
    other = open_clip.SimpleTokenizer(context_length=32, **settings)
    texts = ["Dogs, & two words of it", "CAFÉ"]
    tokens = CaptionTokens(BoundedTokenizer(context_length=32, **settings))
    assert np.array_equal(tokens(texts), other(texts).numpy())
    assert tokens._words is None
