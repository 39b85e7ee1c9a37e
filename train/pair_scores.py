"""What a model thinks of preference pairs: scores, PickScore's loss over them, and how often people agree."""

from __future__ import annotations

from dataclasses import dataclass

import open_clip
import torch
from torch import Tensor

from encode_pipeline.latents.spec import LatentSpec, convert_scale
from train.preferences import PairBatch, PreferencePairs, Tokenizer, all_batches

TIE_THRESHOLDS = tuple(number / 10 for number in range(11))
"""Differences of probability up to which two pictures may be called equally good."""


@dataclass(frozen=True)
class Scorer:
    """A model with what it takes to score pairs."""

    model: open_clip.CLIP
    tokenizer: Tokenizer
    spec: LatentSpec
    """Of the latents that the model reads; those of another scale are converted."""
    bfloat16: bool

    def scores(self, batch: PairBatch, stored: LatentSpec) -> Tensor:
        """The scores of both pictures of each pair: e^s · cos(picture, caption)."""
        device = self.model.logit_scale.device
        latents_nchw = batch.latents_bschw.flatten(0, 1).to(device, torch.float32)
        latents_nchw = convert_scale(latents_nchw, stored.vae, stored.scale, self.spec.scale)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16):
            image_nd = self.model.encode_image(latents_nchw, normalize=True)
            text_bd = self.model.encode_text(batch.tokens_bl.to(device), normalize=True)
        image_bsd = image_nd.float().unflatten(0, (-1, 2))
        scores_bs: Tensor = self.model.logit_scale.exp() * (image_bsd * text_bd.float().unsqueeze(1)).sum(dim=-1)
        return scores_bs

    @torch.no_grad()
    def judge(self, pairs: PreferencePairs, batch_size: int, threshold: float | None = None) -> dict[str, float]:
        """How the model does on held-out pairs. Without a threshold for ties, the best one for these pairs is taken."""
        self.model.eval()
        seen = [
            (self.scores(batch, pairs.spec).cpu(), batch) for batch in all_batches(pairs, self.tokenizer, batch_size)
        ]
        self.model.train()
        scores_bs = torch.cat([scores for scores, _ in seen])
        labels_bs = torch.cat([batch.labels_bs for _, batch in seen])
        examples_b = torch.cat([batch.examples_b for _, batch in seen])
        decided_b = labels_bs[:, 0] != labels_bs[:, 1]
        agreement_b = agreement(scores_bs, labels_bs)
        chosen = best_threshold(scores_bs, labels_bs) if threshold is None else threshold
        return {
            "accuracy": agreement_b.mean().item(),
            "accuracy_decided": agreement_b[decided_b].mean().item() if decided_b.any() else 0.0,
            "accuracy_with_ties": accuracy_with_ties(scores_bs, labels_bs, chosen),
            "tie_threshold": chosen,
            "loss": preference_loss(scores_bs, labels_bs, examples_b).item(),
            "pairs": len(labels_bs),
            "ties": int((~decided_b).sum()),
        }


def preference_loss(scores_bs: Tensor, labels_bs: Tensor, examples_b: Tensor) -> Tensor:
    """PickScore's loss: how far the softmax over a pair's two scores is from people's preference (Kullback-Leibler).

    That is the cross-entropy with the labels 1 and 0, or a half each, less their own entropy: a tie that the
    scores call a tie costs nothing, as PickScore has it by adding log 0.5. A pair weighs one over the number of pairs
    with its caption, so that no prompt counts more for having been tried often; the weights are divided by their
    sum over the batch. PickScore's option of setting the captions of a batch against each other, which it was not
    trained with, is not here.
    """
    log_probabilities_bs = torch.log_softmax(scores_bs, dim=1)
    divergence_b = (torch.xlogy(labels_bs, labels_bs) - labels_bs * log_probabilities_bs).sum(dim=1)
    weights_b = 1 / examples_b
    return (divergence_b * weights_b).sum() / weights_b.sum()


def agreement(scores_bs: Tensor, labels_bs: Tensor) -> Tensor:
    """For each pair, how much of the preference went to the picture with the higher score; none does if both are equal.

    It is what PickScore looks at on the way. A tie gives a half whatever the model says.
    """
    first_b, second_b = scores_bs.unbind(dim=1)
    return (first_b > second_b) * labels_bs[:, 0] + (first_b < second_b) * labels_bs[:, 1]


def accuracy_with_ties(scores_bs: Tensor, labels_bs: Tensor, threshold: float) -> float:
    """PickScore's accuracy: probabilities no further apart than the threshold are called a tie.

    A right call gives 1, a tie where people had a preference a half, a preference where they had none a half.
    """
    probability_b = torch.softmax(scores_bs.double(), dim=1).diff(dim=1).squeeze(1)
    called_b = torch.where(probability_b.abs() <= threshold, 0, probability_b.sign())
    told_b = labels_bs.double().diff(dim=1).squeeze(1).sign()
    return float((1 - (called_b - told_b).abs() / 2).mean())


def best_threshold(scores_bs: Tensor, labels_bs: Tensor) -> float:
    """The lowest of the thresholds that make the most of a set of pairs."""
    return max(TIE_THRESHOLDS, key=lambda threshold: accuracy_with_ties(scores_bs, labels_bs, threshold))
