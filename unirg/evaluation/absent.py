"""Which scores of the catalog an evaluation does not have, why, and what gives them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from unirg.evaluation.scores import Scores
from unirg.metrics.catalog import CATALOG, JUDGE, scorers


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
            f"name the artifact with --weights, and add {name} to scores"
        )
    else:
        why, how = "it was not asked for, and needs no weights", f"add {name} to scores"
    return {"why": why, "how": how}
