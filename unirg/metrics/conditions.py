"""Condition F1: how well the conditions that reports state agree (Smit et al., EMNLP 2020).

0 to 1, higher is better. Over labels of the 14 conditions in CheXbert's order, or over the 5 that the field
reports beside them. The public rule (the package f1chexbert, and scikit-learn's report under it) counts
positive and uncertain as stated, blank and negative as not; a precision, recall or F1 without a case is 0,
and so a condition that no reference states counts 0 in the macro average: read it with its support, or take
`macro_supported`. ReXrank does not report it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unirg.metrics.findings_terms import CONDITIONS

LABELS = ("blank", "positive", "negative", "uncertain")
"""CheXbert's classes of a condition; No Finding is blank or positive only."""
BLANK, POSITIVE, NEGATIVE, UNCERTAIN = range(len(LABELS))

FIVE = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
"""The five conditions that CheXpert's readers competed on (Irvin et al., AAAI 2019)."""

Uncertain = Literal["positive", "negative", "ignore"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of one condition, or averaged over several."""

    precision: float
    recall: float
    f1: float
    support: int
    """References that state the condition; of an average, their sum over its conditions."""


@dataclass(frozen=True, slots=True)
class ConditionF1:
    """Each condition by name, and the averages over them."""

    conditions: dict[str, Agreement]
    micro: Agreement
    """Of all statements together."""
    macro: Agreement
    """Mean over all conditions, as is public."""
    macro_supported: Agreement
    """Mean over the conditions that some reference states."""


def condition_f1(
    candidates: ArrayLike,
    references: ArrayLike,
    conditions: Sequence[str] = CONDITIONS,
    uncertain: Uncertain = "positive",
) -> ConditionF1:
    """Agreement of the conditions that candidates and references state.

    Args:
        candidates: (studies, 14) classes of `LABELS`, conditions in the order of `CONDITIONS`.
        references: the same, in the same order of studies.
        conditions: which of the 14 to report, such as `FIVE`.
        uncertain: what an uncertain label counts as: `positive`, stated, the public rule; `negative`, not
            stated; `ignore`, a study whose reference is uncertain does not count for that condition, while
            a candidate's uncertain counts as stated (so that no candidate changes the support).

    Raises:
        ValueError: the labels are not (studies, 14) classes, or not of the same studies.
    """
    said, expected = _checked(candidates), _checked(references)
    if said.shape != expected.shape:
        raise ValueError(f"{len(said)} candidates and {len(expected)} references")
    stated = (POSITIVE,) if uncertain == "negative" else (POSITIVE, UNCERTAIN)
    counted = (expected != UNCERTAIN) | (uncertain != "ignore")
    columns = [CONDITIONS.index(condition) for condition in conditions]
    ours, truth = (np.isin(side, stated)[:, columns] for side in (said, expected))
    counted = counted[:, columns]
    both, claimed, support = ((cases & counted).sum(0) for cases in (ours & truth, ours, truth))
    each = [_agreement(*counts) for counts in zip(both, claimed, support, strict=True)]
    return ConditionF1(
        conditions=dict(zip(conditions, each, strict=True)),
        micro=_agreement(both.sum(), claimed.sum(), support.sum()),
        macro=_mean(each),
        macro_supported=_mean([agreement for agreement in each if agreement.support]),
    )


def _checked(labels: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(labels, dtype=np.int64).reshape(-1, len(CONDITIONS))
    if ((array < 0) | (array >= len(LABELS))).any():
        raise ValueError(f"a label is none of {', '.join(LABELS)}: give classes 0 to {len(LABELS) - 1}")
    return array


def _agreement(both: int, claimed: int, support: int) -> Agreement:
    return Agreement(
        precision=float(both / claimed) if claimed else 0.0,
        recall=float(both / support) if support else 0.0,
        f1=float(2 * both / (claimed + support)) if claimed + support else 0.0,
        support=int(support),
    )


def _mean(each: Sequence[Agreement]) -> Agreement:
    """Zeros where there is none."""
    count = max(1, len(each))
    return Agreement(
        precision=sum(agreement.precision for agreement in each) / count,
        recall=sum(agreement.recall for agreement in each) / count,
        f1=sum(agreement.f1 for agreement in each) / count,
        support=sum(agreement.support for agreement in each),
    )
