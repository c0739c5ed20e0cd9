"""Which scores of the catalog an evaluation does not have, why, and what gives them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from unirg.evaluation.scores import Scores
from unirg.metrics.catalog import CATALOG, JUDGE, scorers

_NAMES = "{names}"
"""Where the names of scores stand in a remedy that several have."""


def absent(scores: Scores, derived: Collection[str] = ()) -> list[dict[str, Any]]:
    """Scores that no study of any system has, in the catalog's order.

    Args:
        derived: scores that whoever shows the list has formed from others.

    Returns:
        Records of `metric`, `label`, `why` and `how`: the remedy, for who runs the command.
    """
    numbers = {metric for (_, _, metric), found in scores.values.items() if not np.isnan(found).all()}
    return [
        {
            "metric": name,
            "label": score.label,
            **_explained(name, score.scorer == JUDGE, name in scores.metrics),
        }
        for name, score in CATALOG.items()
        if name not in numbers and name not in derived
    ]


def lines(found: Sequence[Mapping[str, str]]) -> list[str]:
    """The records of `absent` for a terminal: a line for each reason and remedy, however many share them."""
    together: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for each in found:
        how = each["how"].replace(_add(each["metric"]), _add(_NAMES))
        together.setdefault((each["why"], how), []).append(each)
    told = []
    for (why, how), those in together.items():
        labels = "; ".join(each["label"] for each in those) + (" were" if len(those) > 1 else " was")
        names = ", ".join(each["metric"] for each in those)
        told.append(f"{labels} not computed: {why}; {how.replace(_NAMES, names)}")
    return told


def _add(names: str) -> str:
    return f"add {names} to scores"


def _explained(name: str, judged: bool, asked: bool) -> dict[str, str]:
    if judged:  # the judge's scores stand in every evaluation
        why, how = "no judge counted errors", "set judge_url and judge_model to a language model's"
    elif asked:
        why, how = "it was asked for and no study has it", "see why under what was not scored"
    elif needed := scorers([name]):
        why = f"it needs the weights of {', '.join(needed)}"
        collect = f"scorers=[{','.join(needed)}]"
        how = (
            f"run unirg weights fetch {' '.join(needed)}, then unirg weights make source=hub '{collect}', "
            f"name the artifact with --weights, and {_add(name)}"
        )
    else:
        why, how = "it was not asked for, and needs no weights", _add(name)
    return {"why": why, "how": how}
