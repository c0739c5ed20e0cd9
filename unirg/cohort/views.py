"""Names of views, as corpora and DICOM headers write them, to the two words that the pipeline needs.

Sources: IU X-ray's `projection`, CheXpert's `frontal_lateral`, DICOM ViewPosition (0018,5101), the view
names of MIMIC-CXR's ViewCodeSequence, and ReXGradient's and ReXrank's tokens. A patient's position (erect,
supine) is no view, so it is unknown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from unirg.study import Projection, View

UNKNOWN: tuple[View, Projection | None] = ("unknown", None)

_PA = ("pa", "postero anterior", "posteroanterior", "frontal pa", "pa frontal")
_AP = ("ap", "antero posterior", "anteroposterior", "frontal ap", "ap frontal")
_FRONTAL = ("frontal",)
_LATERAL = ("lateral", "lat", "ll", "rl", "left lateral", "right lateral")
_OTHER = (
    *("lao", "lpo", "rao", "rpo", "oblique", "left oblique", "right oblique"),
    *("left anterior oblique", "right anterior oblique", "left posterior oblique", "right posterior oblique"),
    *("lld", "rld", "ap lld", "ap rld", "pa lld", "pa rld", "decubitus"),
    *("ap axial", "lordotic", "apical lordotic", "xtable lateral", "cross table lateral"),
    *("swimmers", "l5 s1"),
    *("kub", "picc line", "other"),
)

VIEWS: dict[str, tuple[View, Projection | None]] = {
    **dict.fromkeys(_PA, ("frontal", "PA")),
    **dict.fromkeys(_AP, ("frontal", "AP")),
    **dict.fromkeys(_FRONTAL, ("frontal", None)),
    **dict.fromkeys(_LATERAL, ("lateral", None)),
    **dict.fromkeys(_OTHER, ("other", None)),
}


def view_of(name: str | None) -> tuple[View, Projection | None]:
    """The view and, for a frontal one, the projection that a name means; `UNKNOWN` for any other name.

    Case, and whether words are parted by spaces, underscores or hyphens, do not matter.
    """
    words = re.sub(r"[\s_-]+", " ", name or "").strip().casefold()
    return VIEWS.get(words, UNKNOWN)


def views_of(names: Sequence[Any], images: int) -> list[tuple[View, Projection | None]]:
    """The views of a study's images by a list of names given beside them; anything but a text is no name.

    A list of another length is no longer parallel (ReXrank's key images, which are frontal, stand at labels
    of either view there), so it tells only what all of more names than images agree on.
    """
    told = [view_of(name if isinstance(name, str) else None) for name in names]
    if len(told) == images:
        return told
    views, projections = ({item[part] for item in told} for part in (0, 1))
    if len(told) < images or len(views) != 1:
        return [UNKNOWN] * images
    return [(told[0][0], told[0][1] if len(projections) == 1 else None)] * images
