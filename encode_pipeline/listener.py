"""Whom an engine tells how it goes."""

from __future__ import annotations

from typing import Any


class Listener:
    """Hears everything and does nothing; `Progress` is the one that does."""

    def tell(self, latents: int) -> None:
        """So many latents have been made, long before their shard is finished."""

    def live(self, encoders: int) -> None:
        """So many encoders are up from now on."""

    def event(self, name: str, text: str | None, /, **facts: Any) -> None:
        """Something happened: a line for a person, or None, and facts for the log."""


NOBODY = Listener()
