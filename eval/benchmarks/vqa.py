"""Yes or no to a question about a picture: transformers' BLIP, asked as BLIP's own code asks it.

Transformers' processor leaves out what that code does: the first token of a question is the encoder's mark, and the
chance of "yes" is against "no" alone. Only questions of one length are asked together: transformers 5 forgets the mask
of the padding between question and answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from encode_pipeline.latents.command import RequestError
from eval.benchmarks.judges import Judge, open_judge, open_words

MEAN, SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
LONGEST = 35
"""Tokens of a question."""
OFFICIAL_SIDE = 480
"""Of a picture as the official scorer's BLIP sees it."""


@dataclass(frozen=True)
class Blip:
    """A BLIP that answers questions."""

    judge: Judge
    words: Any
    yes: int
    no: int

    @property
    def side(self) -> int:
        """Of a picture as it sees it."""
        return int(self.judge.model.config.vision_config.image_size)

    def chances(self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> list[list[float]]:
        """The probability of "yes" to each of a picture's questions."""
        told: list[list[float]] = [[0.0] * len(asked) for asked in questions]
        places: dict[int, list[tuple[int, int]]] = {}
        tokens = [[self._tokens(question) for question in asked] for asked in questions]
        for at, asked in enumerate(tokens):
            for number, question in enumerate(asked):
                places.setdefault(len(question), []).append((at, number))
        pixels_bchw = torch.stack([self._prepared(image) for image in images]).to(self.judge.device)
        seen_bnd = self.judge.model.vision_model(pixel_values=pixels_bchw).last_hidden_state
        for alike in places.values():
            seen_qnd = seen_bnd[[at for at, _ in alike]]
            asked_qt = torch.tensor([tokens[at][number] for at, number in alike], device=self.judge.device)
            for (at, number), chance in zip(alike, self._yes(seen_qnd, asked_qt).tolist(), strict=True):
                told[at][number] = chance
        return told

    def _yes(self, seen_qnd: Tensor, asked_qt: Tensor) -> Tensor:
        """The probability of "yes" to each question about what is seen, against "no"."""
        model, start = self.judge.model, self.judge.model.config.text_config.bos_token_id
        asked_qt[:, 0] = start + 1
        understood_qtd = model.text_encoder(input_ids=asked_qt, encoder_hidden_states=seen_qnd).last_hidden_state
        begun_q1 = torch.full((len(asked_qt), 1), start, device=asked_qt.device)
        answers_qv = model.text_decoder(input_ids=begun_q1, encoder_hidden_states=understood_qtd).logits[:, 0]
        chances_q: Tensor = (answers_qv[:, self.yes] - answers_qv[:, self.no]).sigmoid()
        return chances_q

    def _tokens(self, question: str) -> list[int]:
        return list(self.words(question, truncation=True, max_length=LONGEST).input_ids)

    def _prepared(self, image: Image.Image) -> Tensor:
        sized = np.array(image.resize((self.side, self.side), Image.Resampling.BICUBIC), np.float32)
        return ((torch.from_numpy(sized) / 255 - torch.tensor(MEAN)) / torch.tensor(SPREAD)).permute(2, 0, 1)


def open_blip(address: str) -> Blip:
    """The BLIP at an address, with its tokenizer."""
    judge, words = open_judge("BlipForQuestionAnswering", address), open_words(address)
    text = judge.model.config.text_config
    yes, no = (words.convert_tokens_to_ids(word) for word in ("yes", "no"))
    # Two marks follow BERT's own words, the decoder's and the encoder's; a tokenizer may or may not list them.
    if len(words) not in (text.vocab_size, text.vocab_size - 2) or text.bos_token_id != text.vocab_size - 2:
        raise RequestError(
            f"{address}: its tokenizer knows {len(words):,} words and its model {text.vocab_size:,}, of which "
            f"{text.bos_token_id} begins an answer: not BLIP's"
        )
    if words.unk_token_id in (yes, no):
        raise RequestError(f"{address}: its tokenizer does not know yes and no")
    blip = Blip(judge, words, yes, no)
    if blip.side != OFFICIAL_SIDE:
        judge.not_comparable.append(
            f"a BLIP that sees {blip.side} pixels, where the official scorer's sees {OFFICIAL_SIDE}"
        )
    return blip
