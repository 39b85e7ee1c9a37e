"""What made the pictures that a run holds or judges: a generator, what steered it, and how long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from encode_pipeline.latents.spec import digest
from eval.report.published import PublishedRow, PublishedTable
from eval.report.runs import Read, told_apart

PLAIN = "none"
"""The reward of pictures that none steered."""
WORDS = {"clip": "CLIPScore", "pick": "PickScore", "avoid": "avoiding", "hps": "HPSv2", "sld": "SLD"}
"""Rewards, and other ways to steer, as the paper calls them."""


class RewardFacts(Read):
    """What a run says of one of its rewards."""

    name: str
    reads: str
    weight: float = 1.0
    weights_sha256: str = ""
    step: int | None = None
    model: str | None = None
    tag: str | None = None
    """Of OpenCLIP's published weights, where the model has some."""
    concept: str | None = None
    """What it turns from."""

    @property
    def kind(self) -> str:
        return self.name.partition("-")[0]

    @property
    def asked(self) -> str | None:
        """Its model as one asks for it; None of a reward without one."""
        return f"{self.model}/{self.tag}" if self.tag else self.model

    @property
    def text(self) -> str:
        return ": ".join(part for part in (WORDS.get(self.kind, self.kind), self.asked) if part)


class PromptFacts(Read):
    """What a run says of its prompts."""

    kind: str
    address: str
    count: int
    samples: int
    sha256: str | None = None

    @property
    def text(self) -> str:
        each = "" if self.samples == 1 else f", {self.samples} pictures of each"
        return f"{self.count:,} prompts of {self.address}{each}"


class Setup(Read):
    """A run's facts as far as they tell how its pictures came to be; of pictures of others, only where they are."""

    generator: dict[str, Any] = Field(default_factory=dict)
    rewards: list[RewardFacts] = Field(default_factory=list)
    recipe: dict[str, Any] = Field(default_factory=dict)
    steps: int | None = None
    prompts: PromptFacts | None = None
    method: str | None = None
    """Of pictures that were made in another way than from noise by ReNO."""
    folder: str | None = None

    @property
    def reward(self) -> str | None:
        """Its only reward's kind, as the paper's tables have one a row; None for sums of several."""
        if self.folder is not None or self.method is not None:
            return self.method
        kinds = [reward.kind for reward in self.rewards]
        return kinds[0] if len(kinds) == 1 else None if kinds else PLAIN

    @property
    def model(self) -> str | None:
        return self.rewards[0].asked if len(self.rewards) == 1 else None

    @property
    def name(self) -> str:
        if self.folder is not None:
            return Path(self.folder).name
        if self.method is not None:
            return f"{WORDS.get(self.method, self.method)} ({self.generator.get('generator')})"
        if not self.rewards:
            return f"Base ({self.generator.get('generator')})"
        return " + ".join(reward.text for reward in self.rewards)

    @property
    def weights(self) -> str:
        """Of the reward, or of the generator where there is none; of several rewards a hash of all."""
        if not self.rewards:
            return str(self.generator.get("weights_sha256", ""))
        return self.rewards[0].weights_sha256 if len(self.rewards) == 1 else digest(self.identity)

    @property
    def identity(self) -> list[Any]:
        """What is the same for two runs that made pictures in the same way."""
        rewards = [[reward.name, reward.weight, reward.weights_sha256, reward.concept] for reward in self.rewards]
        way = [self.method, self.steps, self.recipe if self.rewards else None]
        return [self.folder, self.generator.get("weights_sha256"), rewards, way]

    def unlike(self, paper: PublishedTable) -> list[str]:
        """How it differs from what the paper did, where no run says so of itself."""
        if self.folder is not None:
            return ["pictures that were not made here"]
        name, wanted = str(self.generator.get("generator")), str(paper.data["generator"])
        if self.method is not None or name.rpartition("/")[2].lower() == wanted.rpartition("/")[2]:
            return []
        return [f"pictures by {name}, where the paper has {wanted}"]

    def row_in(self, paper: PublishedTable) -> PublishedRow | None:
        """The paper's row of the same reward and model."""
        if self.reward == PLAIN and self.unlike(paper):
            return None  # another generator's own pictures
        return paper.row_of(self.model, reward=self.reward)


def names_of(setups: Sequence[Setup]) -> Mapping[str, str]:
    """A name for each way in which pictures were made, unlike that of any other."""
    by_key = {digest(setup.identity): setup for setup in setups}
    steps = {key: setup.rewards[0].step if setup.rewards else None for key, setup in by_key.items()}
    return told_apart({key: setup.name for key, setup in by_key.items()}, steps, {key: key for key in by_key})
