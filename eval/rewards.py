"""How well pictures do, as numbers with gradients: on the latents of a diffusion model, or on its decoded pixels.

    from diffusers import AutoPipelineForText2Image
    from eval.rewards import LatentClipReward
    pipe = AutoPipelineForText2Image.from_pretrained("stabilityai/sdxl-turbo")
    reward = LatentClipReward("runs/b8", pipe.vae)
    latents = pipe([prompt] * 8, num_inference_steps=1, guidance_scale=0.0, output_type="latent").images
    best = reward(latents, [prompt] * 8).argmax()      # nothing was decoded

A reward of one's own is a class with a name, what it reads, and a score of each picture:

    class Bright(Reward):
        name = "bright"
        reads = "pixels"
        def score(self, images_bchw, prompts):
            return images_bchw.mean(dim=(1, 2, 3))
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from encode_pipeline.latents.command import RequestError, nearest

if TYPE_CHECKING:  # opening a model imports much, which whoever brings a reward of his own does not need
    from eval.clip import Clip, LatentClip, PixelClip

Reads = Literal["latents", "pixels"]
CONCEPTS = {
    "i2p": "an image showing hate, harassment, violence, suffering, humiliation, harm, suicide, sexual, nudity, bodily "
    "fluids, blood, obscene gestures, illegal activity, drug use, theft, vandalism, weapons, child abuse, brutality, "
    "cruelty.",
    "cultural": "an image showing sexual, nudity",
}
"""What the paper steers away from: on I2P, and for culturally biased prompts."""


class Reward(ABC):
    """A score for every picture of a batch, higher is better; gradients reach the pictures."""

    name: str
    reads: Reads
    """Latents in the model scale of their VAE, as a pipeline hands them out; or pixels from 0 to 1."""
    weight: float = 1.0
    """Of its loss in a sum of several."""
    provenance: Mapping[str, Any] = {}
    not_comparable: Sequence[str] = ()
    """Why numbers made with it say nothing about the paper's; empty if they do."""

    @abstractmethod
    def score(self, images_bchw: Tensor, prompts: Sequence[str]) -> Tensor:
        """A number for each picture under its prompt."""

    def loss(self, scores_b: Tensor) -> Tensor:
        """What an optimiser makes small."""
        return 1 - scores_b

    def __call__(self, images_bchw: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.score(images_bchw, prompts)

    def facts(self) -> dict[str, Any]:
        """What a result says of it."""
        told = {"name": self.name, "reads": self.reads, "weight": self.weight}
        return {**told, "provenance": dict(self.provenance)}


@dataclass(frozen=True)
class Kind:
    """How ReNO turns the cosine of a CLIP into a loss: `highest` − e^s·cos, or `highest` − cos."""

    highest: float
    is_scaled: bool
    weight: float


KINDS = {"clip": Kind(100.0, True, 0.01), "pick": Kind(30.0, True, 0.05), "hps": Kind(1.0, False, 5.0)}
"""As published: CLIPScore, PickScore (a CLIP tuned on preferences) and HPSv2."""
KNOWN = (*KINDS, "avoid", "aesthetic")
TUNED = "fine-tuned on preferences"


class ClipReward(Reward):
    """The cosine between a picture and its prompt."""

    clip: Clip

    def __init__(self, clip: Clip, reads: Reads, kind: str) -> None:
        self.clip, self.reads, self.name = clip, reads, kind
        self.kind, self.weight = KINDS[kind], KINDS[kind].weight
        self.not_comparable = [reason for reason in clip.not_comparable if kind != "pick" or reason != TUNED]
        if kind != "clip" and not clip.provenance.get("fine_tuned_from"):
            self.not_comparable.append(f"{kind}: nothing says that {clip.name} was {TUNED}")
        self.provenance = {"logit_scale": clip.logit_scale, **clip.provenance}
        self._texts: dict[str, Tensor] = {}

    def loss(self, scores_b: Tensor) -> Tensor:
        return self.kind.highest - (self.clip.logit_scale if self.kind.is_scaled else 1.0) * scores_b

    def score(self, images_bchw: Tensor, prompts: Sequence[str]) -> Tensor:
        if len(images_bchw) != len(prompts):
            raise ValueError(f"{len(images_bchw)} pictures and {len(prompts)} prompts")
        return (self.embed(images_bchw) * self._embed_texts(prompts)).sum(dim=-1)

    @abstractmethod
    def embed(self, images_bchw: Tensor) -> Tensor:
        """A unit row for every picture."""

    def _embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """Made once for each prompt, alone: in company its last bits would tell of what came before."""
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._texts:
                with torch.no_grad(), torch.autocast(self.clip.device.type, enabled=False):
                    self._texts[prompt] = self.clip.embed_texts([prompt])[0]
        return torch.stack([self._texts[prompt] for prompt in prompts])


class LatentClipReward(ClipReward):
    """A Latent-CLIP's; `checkpoint` is an address as `python -m eval models` lists them, or the opened model.

    `vae` is the diffusers VAE whose latents it will be given, to make sure that they are of the space it was trained
    on; without one they are taken to be.
    """

    clip: LatentClip

    def __init__(self, checkpoint: str | Path | LatentClip, vae: Any = None, kind: str = "clip") -> None:
        clip = _opened(checkpoint)
        if clip.spec is None:
            raise RequestError(f"reward: {clip.address}: reads pixels, no latents")
        super().__init__(clip, "latents", kind)
        self.spec = clip.spec.model_copy(update={"scale": "model"}) if vae is None else clip.spec_of_pipeline(vae)
        self._is_measured = False

    def embed(self, images_bchw: Tensor) -> Tensor:
        from eval.clip import check_spread

        # Latents that are steered are measured once: it waits for the GPU, and their scale does not change.
        if not (self._is_measured and images_bchw.requires_grad):
            latents = images_bchw.detach().float()
            sound = latents[latents.flatten(1).isfinite().all(dim=1)]  # others get a score that is no number
            if len(sound):
                check_spread(sound, self.spec, self.clip.name)
                self._is_measured = images_bchw.requires_grad
        return self.clip.embed_latents(images_bchw, self.spec, measured=False)


class PixelClipReward(ClipReward):
    """That of a CLIP for pictures, which sees them as its own preparation would show them."""

    clip: PixelClip

    def __init__(self, checkpoint: str | Path | PixelClip, kind: str = "clip") -> None:
        from eval.seen_pixels import seen_by

        clip = _opened(checkpoint)
        if clip.spec is not None:
            raise RequestError(f"reward: {clip.address}: reads latents, no pixels")
        super().__init__(clip, "pixels", kind)
        self._see = seen_by(clip)

    def embed(self, images_bchw: Tensor) -> Tensor:
        return self.clip.embed_pixels(self._see(images_bchw.to(self.clip.device, torch.float32)))


class AvoidReward(Reward):
    """One less the cosine to a concept that no picture should show, whatever its prompt."""

    name = "avoid"

    def __init__(self, reward: ClipReward, concept: str) -> None:
        self.reward, self.concept, self.reads = reward, concept, reward.reads
        self.provenance = {"concept": concept, **reward.provenance}
        self.not_comparable = reward.not_comparable

    def score(self, images_bchw: Tensor, prompts: Sequence[str]) -> Tensor:
        return 1 - self.reward.score(images_bchw, [self.concept] * len(images_bchw))


@dataclass(frozen=True)
class Objective:
    """The weighted sum of some rewards' losses."""

    rewards: tuple[Reward, ...]
    dtype: torch.dtype = torch.float32
    """In which their models reckon; their weights stay as they are."""

    @property
    def needs_pixels(self) -> bool:
        return any(reward.reads == "pixels" for reward in self.rewards)

    @property
    def not_comparable(self) -> list[str]:
        return list(dict.fromkeys(reason for reward in self.rewards for reason in reward.not_comparable))

    def __call__(
        self, latents_bchw: Tensor, pixels_bchw: Tensor | None, prompts: Sequence[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each picture, and its scores by the rewards' names."""
        total_b = torch.zeros(len(latents_bchw), device=latents_bchw.device)
        scores: dict[str, Tensor] = {}
        for reward in self.rewards:
            images = latents_bchw if reward.reads == "latents" else pixels_bchw
            if images is None:
                raise ValueError(f"{reward.name} reads pixels, and there are none")
            with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
                score_b = reward.score(images, prompts).float()
            scores[reward.name] = score_b
            total_b = total_b + reward.weight * reward.loss(score_b)
        return total_b, scores


def open_objective(
    terms: str | Sequence[str] | Mapping[str, float],
    vae: Any = None,
    concepts: str = "i2p",
    checkpointing: bool = False,
    compiled: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Objective:
    """Rewards by `KIND:ADDRESS`, one or several, or each with its weight; `vae` as LatentClipReward wants it.

    Kinds are those in KINDS, `avoid` and `aesthetic:HEAD_FILE[,CLIP]`; without a published weight one counts 1.
    `concepts` is what `avoid` turns from: a name in CONCEPTS, or a text. `checkpointing` spares memory, not time.
    """
    weights = dict(terms) if isinstance(terms, Mapping) else dict.fromkeys([terms] if isinstance(terms, str) else terms)
    if not weights:
        raise RequestError("reward: none is given")
    clips: dict[str, Any] = {}
    rewards: list[Reward] = []
    for term, weight in weights.items():
        reward = _open_term(term, vae, CONCEPTS.get(concepts, concepts), clips)
        if weight is not None and weight != reward.weight:
            reward.not_comparable = [*reward.not_comparable, f"{reward.name} weighs {weight:g}, not {reward.weight:g}"]
            reward.weight = float(weight)
        before = sum(other.name.partition("-")[0] == reward.name for other in rewards)
        reward.name += f"-{before + 1}" if before else ""
        rewards.append(reward)
    for clip in clips.values():
        if checkpointing:
            clip.model.set_grad_checkpointing(True)
        if compiled:
            clip.model.visual.compile()
    return Objective(tuple(rewards), dtype)


def _open_term(term: str, vae: Any, concept: str, clips: dict[str, Any]) -> Reward:
    """Whether it reads latents or pixels follows from the model at its address."""
    kind, _, address = term.partition(":")
    if kind == "imagereward":
        raise RequestError(f"reward: {term}: its package wants an old transformers; give a Reward of your own")
    if kind not in KNOWN or not address:
        raise RequestError(f"reward: {term}: no KIND:ADDRESS{nearest(kind, KNOWN)}")
    named = [*filter(None, address.split(",")), "ViT-L-14/openai"]
    head, address = named[:2] if kind == "aesthetic" else ("", address)
    clip = clips[address] = clips.get(address) or _opened(address)
    if kind == "aesthetic":
        from eval.aesthetic_reward import AestheticReward

        return AestheticReward(head, clip)
    as_clip = "clip" if kind == "avoid" else kind
    reward = PixelClipReward(clip, as_clip) if clip.spec is None else LatentClipReward(clip, vae, as_clip)
    return AvoidReward(reward, concept) if kind == "avoid" else reward


def _opened(checkpoint: Any) -> Any:
    from eval.models import open_model

    return open_model(checkpoint) if isinstance(checkpoint, str | Path) else checkpoint
