"""Ranks of means as a leaderboard has them: 1 is the best, and figures equal as shown share a rank.

After two systems that share rank 1 comes rank 3.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

DIGITS = 3
"""Decimals that a board shows: means that are equal so far are tied."""

Key = tuple[bool, float]
"""What sorts means from the best to the worst; equal keys are tied."""
Place = dict[str, Any]
"""`rank` and `tied`, the names of the others of that rank."""


def of_mean(mean: float, higher_is_better: bool) -> Key:
    """The key of a finite mean."""
    return False, round(-mean if higher_is_better else mean, DIGITS) + 0.0


def of_inverse(mean: float) -> Key:
    """The key of 1/RadCliQ-v1 by the finite MEAN of RadCliQ-v1, of which lower is better throughout.

    The reciprocal falls with the mean on either side of its pole, but not across it: means below 0 come
    first. Ties are of the reciprocal, which is what is shown.
    """
    return mean > 0, round(-1 / mean, DIGITS) if mean else float("inf")


def ranks(keys: Mapping[str, Key], names: Sequence[str]) -> dict[str, Place | None]:
    """name -> its place among those that have a key; None for those that have none."""
    return {name: _place(name, keys) if name in keys else None for name in names}


def order(places: Sequence[Mapping[str, Place | None]], names: Sequence[str]) -> list[Place]:
    """The names by their mean rank over some metrics, those that lack one of the ranks last, unranked."""
    means: dict[str, Key] = {}
    for name in names:
        found = [place["rank"] for each in places if (place := each[name])]
        if found and len(found) == len(places):
            means[name] = False, statistics.fmean(found)
    ordered = sorted(means, key=means.__getitem__)
    unranked: list[Place] = [
        {"system": name, "rank": None, "tied": []} for name in names if name not in means
    ]
    return [{"system": name} | _place(name, means) for name in ordered] + unranked


def _place(name: str, keys: Mapping[str, Key]) -> Place:
    return {
        "rank": 1 + sum(other < keys[name] for other in keys.values()),
        "tied": [other for other, key in keys.items() if other != name and key == keys[name]],
    }
