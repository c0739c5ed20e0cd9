"""What a metric with a model is to the engine: it reads texts one by one, then compares what it read.

A text is read once, however many pairs it is part of; a GRPO group's reference, say, is part of sixteen.
Reading is where the model runs. Comparing needs none, and sees what was read of both texts alone: so no
score depends on its batch, its order, or which other pairs there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Pair = tuple[str, str]
"""(candidate, reference)"""
Row = dict[str, float]
"""Score by name."""
Feature = Any
"""What a scorer read of one text; of the scorer's own type."""


@dataclass(frozen=True, slots=True)
class Missing:
    """Why there is no score; holds no text of a report."""

    reason: str


class TextScorer(Protocol):
    """A metric over what a model reads of each text."""

    name: str
    """Unique; a directory of this name holds its weights."""

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of the scores that `compare` gives."""

    identity: str
    """Digest of the weights and of every setting that changes a score, precision included."""

    @property
    def kept(self) -> Literal["texts", "pairs"]:
        """What the cache keeps on disk: features where they are small, else the scores of pairs."""

    def read(self, texts: Sequence[str]) -> list[Feature]:
        """The feature of each text, in order. Any text is valid: empty, emoji, or far too long."""

    def compare(self, candidates: Sequence[Feature], references: Sequence[Feature]) -> list[Row]:
        """The scores of each pair of features, in order; both sequences have the same length."""

    def pack(self, feature: Feature) -> bytes:
        """The feature as bytes, for the cache."""

    def unpack(self, data: bytes) -> Feature:
        """The feature that `pack` was given, exactly."""

    def size(self, feature: Feature) -> int:
        """About how many bytes the feature takes in memory."""
