"""Yes or no to a question about a picture: transformers' BLIP, asked as BLIP's own code asks it.

Transformers' processor leaves out what that code does: the first token of a question is the encoder's mark, and the
chance of "yes" is against "no" alone. Questions of one batch do not see each other's padding.
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
        counts = [len(asked) for asked in questions]
        if not sum(counts):
            return [[] for _ in questions]
        model, device = self.judge.model, self.judge.device
        pixels_bchw = torch.stack([self._prepared(image) for image in images]).to(device)
        seen_bnd = model.vision_model(pixel_values=pixels_bchw).last_hidden_state
        seen_qnd = seen_bnd.repeat_interleave(torch.tensor(counts, device=device), dim=0)
        tokens = self.words(
            [question for asked in questions for question in asked],
            padding="longest",
            truncation=True,
            max_length=LONGEST,
            return_tensors="pt",
        ).to(device)
        starts = model.config.text_config.bos_token_id
        tokens.input_ids[:, 0] = starts + 1
        understood_qtd = model.text_encoder(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            encoder_hidden_states=seen_qnd,
            encoder_attention_mask=torch.ones(seen_qnd.shape[:2], dtype=torch.long, device=device),
        ).last_hidden_state
        answers_qv = model.text_decoder(
            input_ids=torch.full((len(understood_qtd), 1), starts, device=device),
            encoder_hidden_states=understood_qtd,
            encoder_attention_mask=tokens.attention_mask,
        ).logits[:, 0]
        told = (answers_qv[:, self.yes] - answers_qv[:, self.no]).sigmoid().cpu()
        return [part.tolist() for part in told.split(counts)]

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
