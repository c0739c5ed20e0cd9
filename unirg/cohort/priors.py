"""A patient's studies in time: encounter numbers and prior studies."""

from __future__ import annotations

import itertools
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
        prior = None
        times = itertools.groupby(timeline, key=lambda entry: entry[0])
        for encounter, (_, together) in enumerate(times, start=1):
            same_time = [study for _, study in together]
            for study in same_time:
                place[study.corpus, study.study_id] = {"encounter": encounter, "prior_study_id": prior}
            prior = next((s.study_id for s in reversed(same_time) if s.key_image), prior)
    return [study.model_copy(update=place.get((study.corpus, study.study_id), {})) for study in studies]
