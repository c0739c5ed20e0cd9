"""RadCliQ (Yu et al., Patterns 2023): a linear form of four metrics, fitted to radiologists' error counts.

About -1.44 (v1, every metric 1) upwards; LOWER is better. It estimates a standardised (v1) or plain (v0)
number of errors, so 0 is no bound. ReXrank's setting (rajpurkarlab/CXR-Report-Metric, `run_eval.py` and the
two pickled models beside it): BLEU-2, BERTScore of distilroberta-base rescaled with its baseline, SembScore
as the cosine of CheXbert's embeddings, RadGraph-F1 as the mean of the F1 of entities and of relations. A
score a study, then the mean over studies; boards show 1 / mean.

v1 standardises each metric with the mean and scale of the 160 samples it was fitted on, then adds weight x
standardised metric. v0 rescales its metrics too; its form here is the same with the rescaling multiplied out.
Missing is NaN, and a study that lacks one of the metrics has none: NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Mean and scale over v1's samples, and weight: RadGraph, BERTScore, SembScore, BLEU-2.
_MEAN = (0.5379231241, 0.6175725628, 0.7647942121, 0.4473833540)
_SCALE = (0.3028258411, 0.2243093846, 0.2539439110, 0.2989271671)
_WEIGHT = (-0.3770836826, -0.3703000997, -0.2526162179, 4.315e-12)
_INTERCEPT = 2.4666e-10

_WEIGHT_V0 = (-1.5890342336, -3.0098301362, -1.8733717099, 0.7139418527)
_INTERCEPT_V0 = 5.5161608041


def radcliq_v1(
    radgraph: ArrayLike, bertscore: ArrayLike, sembscore: ArrayLike, bleu2: ArrayLike
) -> NDArray[np.float64]:
    """RadCliQ-v1 of each study, from columns of equal length (or numbers).

    The same as 2.4501430833 - 1.2452163302 RadGraph - 1.6508453287 BERTScore - 0.9947717072 SembScore:
    BLEU-2 has a weight of 1e-11, that is none.
    """
    columns = _columns(radgraph, bertscore, sembscore, bleu2)
    standard = [(column - mean) / scale for column, mean, scale in zip(columns, _MEAN, _SCALE, strict=True)]
    return _weighted(standard, _WEIGHT) + _INTERCEPT


def radcliq_v0(
    radgraph: ArrayLike, bertscore: ArrayLike, sembscore: ArrayLike, bleu2: ArrayLike
) -> NDArray[np.float64]:
    """RadCliQ-v0 of each study, from columns of equal length (or numbers)."""
    return _weighted(_columns(radgraph, bertscore, sembscore, bleu2), _WEIGHT_V0) + _INTERCEPT_V0


def board_value(mean: float) -> float | None:
    """1 / RadCliQ-v1 as ReXrank forms it, from the MEAN over studies; higher is better while it is positive.

    Never the mean of reciprocals: a single study's RadCliQ-v1 can be near 0, where the reciprocal has its
    pole. A negative mean, beyond that pole, is better than any positive one although its value is lower.

    Returns:
        None where the mean is 0 or not finite.
    """
    return 1 / mean if math.isfinite(mean) and mean else None


def _columns(*columns: ArrayLike) -> list[NDArray[np.float64]]:
    return [np.asarray(column, dtype=np.float64) for column in columns]


def _weighted(columns: Sequence[NDArray[np.float64]], weights: Sequence[float]) -> NDArray[np.float64]:
    # No product of matrices: its last bits would depend on how many studies there are.
    first, *rest = (column * weight for column, weight in zip(columns, weights, strict=True))
    return sum(rest, start=first)
