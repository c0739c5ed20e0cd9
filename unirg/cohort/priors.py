"""A patient's studies in time: encounter numbers and prior studies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime

from unirg.study import Study


def link(studies: Iterable[Study]) -> list[Study]:
    """Set `encounter` and `prior_study_id` of every study with a known time, in the order given.

    The prior is the same patient's most recent strictly earlier study with a frontal image: an equal time
    is no prior. Encounters count distinct times, so ties share a number.
    """
    studies = list(studies)
    timelines: dict[tuple[str, str], list[tuple[datetime, Study]]] = defaultdict(list)
    for study in studies:
        if study.acquired_at is not None:
            timelines[study.corpus, study.patient_id].append((study.acquired_at, study))
    place: dict[tuple[str, str], dict[str, object]] = {}
    for timeline in timelines.values():
        timeline.sort(key=lambda entry: (entry[0], entry[1].study_id))
        for at, study in timeline:
            earlier = [(t, s) for t, s in timeline if t < at]
            usable = [s for _, s in earlier if s.key_image]
            place[study.corpus, study.study_id] = {
                "encounter": len({t for t, _ in earlier}) + 1,
                "prior_study_id": usable[-1].study_id if usable else None,
            }
    return [study.model_copy(update=place.get((study.corpus, study.study_id), {})) for study in studies]
