"""A patient's studies in time: encounter numbers and prior studies."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Container, Iterable
from datetime import date, datetime, time

from unirg.study import AcquiredBasis, Study

COARSE: tuple[AcquiredBasis, ...] = ("date", "report_date")
"""Bases that tell the day and not the hour."""


def link(studies: Iterable[Study], kept: Container[str] | None = None) -> list[Study]:
    """Set `encounter` and `prior_study_id` of every study with a known time, in the order given.

    The prior is the same patient's most recent strictly earlier study with a frontal image: an equal time
    is no prior, and on a day on which some study's hour is not known all of the day's are equal. Encounters
    count distinct times, so ties share a number.

    Args:
        kept: ids that the cohort will have, None for all; another study is an encounter and no prior.
    """
    studies = list(studies)
    timelines: dict[tuple[str, str], list[Study]] = defaultdict(list)
    for study in studies:
        if study.acquired_at is not None:
            timelines[study.corpus, study.patient_id].append(study)
    place: dict[tuple[str, str], dict[str, object]] = {}
    for timeline in timelines.values():
        moments = sorted(_moments(timeline), key=lambda entry: (entry[0], entry[1].study_id))
        prior = None
        times = itertools.groupby(moments, key=lambda entry: entry[0])
        for encounter, (_, together) in enumerate(times, start=1):
            same_time = [study for _, study in together]
            for study in same_time:
                place[study.corpus, study.study_id] = {"encounter": encounter, "prior_study_id": prior}
            frontal = [study.study_id for study in same_time if study.key_image]
            prior = next((one for one in reversed(frontal) if kept is None or one in kept), prior)
    return [study.model_copy(update=place.get((study.corpus, study.study_id), {})) for study in studies]


def _moments(timeline: list[Study]) -> list[tuple[datetime, Study]]:
    """When each study was taken, as far as it can be told from the others of its day."""
    known = [(study.acquired_at, study) for study in timeline if study.acquired_at is not None]
    coarse: set[date] = {at.date() for at, study in known if study.acquired_basis in COARSE}
    return [(datetime.combine(at, time.min) if at.date() in coarse else at, study) for at, study in known]
