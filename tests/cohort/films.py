"""A small corpus whose every flaw is chosen: what an adapter may hand to `stage`."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa

from tests.canary import CANARY
from unirg.cohort.corpora import Dropped, UnreadableImage
from unirg.study import Image, Study


@dataclass
class Films:
    """Study number n is of patient n // 2, at 64 x 48 pixels; the sets name the numbers with a flaw."""

    count: int
    unreadable: frozenset[int] = frozenset()
    mute: frozenset[int] = frozenset()
    lateral: frozenset[int] = frozenset()
    dropped: frozenset[int] = frozenset()
    twice: frozenset[int] = frozenset()
    failing: frozenset[int] = frozenset()
    crashing: frozenset[int] = frozenset()
    hanging: frozenset[int] = frozenset()
    stalling: frozenset[int] = frozenset()
    alike: frozenset[int] = frozenset()
    public: bool = False
    name: str = "films"

    def fingerprint(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()

    def records(self) -> Iterator[Study | Dropped]:
        for number in range(self.count):
            if number in self.dropped:
                yield Dropped(f"s{number:03d}", "unreadable report")
                continue
            for _ in range(2 if number in self.twice else 1):
                yield self.study(number)

    def study(self, number: int) -> Study:
        patient = number // 2
        frontal = Image(view="frontal", projection="AP", uri=f"/{CANARY}/{number}.png")
        lateral = Image(view="lateral", uri=f"/{CANARY}/{number}-lateral.png")
        return Study.checked(
            corpus=self.name,
            study_id=f"s{number:03d}",
            patient_id=f"p{patient:03d}",
            institution=("north", "south", "island")[patient % 3],
            acquired_at=datetime(2020, 1, 1) + timedelta(days=number),
            acquired_basis="date",
            images=(lateral,) if number in self.lateral else (lateral, frontal),
            findings=None if number in self.mute else f"Findings of {number}. {CANARY}",
            impression=f"Impression of {number}." if number % 2 and number not in self.mute else None,
        )

    def read(
        self, image: Image, size: int | None = None, fetched: Callable[[], None] = lambda: None
    ) -> np.ndarray:
        number = int(str(image.uri).rpartition("/")[2].removesuffix(".png"))
        if number in self.stalling:
            time.sleep(2)
        fetched()
        if number in self.unreadable:
            raise UnreadableImage("corrupt or truncated")
        if number in self.failing:
            raise ValueError(CANARY)
        if number in self.crashing:
            os.abort()
        if number in self.hanging:
            time.sleep(60)
        if number in self.alike:
            return np.add.outer(np.arange(64), 3 * np.arange(48)).astype(np.uint8)
        return np.full((64, 48), number, np.uint8)

    def account(self) -> dict[str, int]:
        return {"relabelled": 1}

    def truth(self) -> pa.Table | None:
        return None
