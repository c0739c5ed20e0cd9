"""Which studies a model is asked about, with which images, in which words."""

from __future__ import annotations

import base64
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unirg import prompts
from unirg.cohort.reader import Cohort
from unirg.errors import UserError
from unirg.study import Study


@dataclass(frozen=True)
class Task:
    """One study to score, and the study whose images are shown (itself, unless they are permuted)."""

    study: Study
    shown: Study

    @property
    def key(self) -> tuple[str, str]:
        return self.study.corpus, self.study.study_id


def plan(cohort: Cohort, splits: Sequence[str], limit: int | None, permute_seed: int | None) -> list[Task]:
    """The studies to score: of each split the first `limit`, by corpus and id.

    Raises:
        UserError: images are to be permuted in a split of one study.
    """
    tasks = []
    for split in splits:
        studies = cohort.studies(split)
        shown = studies if permute_seed is None else permuted(studies, permute_seed)
        tasks += [Task(*pair) for pair in zip(studies, shown, strict=True)][:limit]
    return tasks


def permuted(studies: Sequence[Study], seed: int) -> list[Study]:
    """For each study another one, of another patient where that is possible; each is used once.

    Patients are shuffled, their studies laid end to end and turned by the longest patient's length.

    Raises:
        UserError: there is no other study.
    """
    if len(studies) == 1:
        raise UserError(f"split {studies[0].split} has one study: its image cannot be permuted")
    by_patient: dict[tuple[str, str], list[Study]] = {}
    for study in studies:
        by_patient.setdefault((study.corpus, study.patient_id), []).append(study)
    patients = list(by_patient.values())
    random.Random(seed).shuffle(patients)
    line = [study for patient in patients for study in patient]
    turn = max(map(len, patients), default=0)
    if len(patients) == 1:
        turn = 1
    other = {
        (study.corpus, study.study_id): line[(place + turn) % len(line)] for place, study in enumerate(line)
    }
    return [other[study.corpus, study.study_id] for study in studies]


@dataclass(frozen=True)
class Question:
    """The chat of one study, images inside, and what the prediction tells about it."""

    messages: list[dict[str, Any]]
    sections: prompts.Sections
    with_prior: bool


def ask(cohort: Cohort, task: Task, with_priors: bool) -> Question:
    """Read a study's images and put its question together, as training does."""
    wanted = prompts.sections(task.study) or "both"
    shown = cohort.with_images(task.shown.study_id)
    prior = cohort.prior(task.study) if with_priors else None
    shown_prior = prior
    if prior and task.shown is not task.study:
        shown_prior = cohort.prior(task.shown) or shown
    pictures = iter(prompts.images(shown, shown_prior))
    chat = prompts.messages(task.study, wanted, prior)
    for message in chat:
        message["content"] = [
            _image_part(next(pictures)) if part["type"] == "image" else part for part in message["content"]
        ]
    return Question(chat, wanted, prior is not None)


def _image_part(png: bytes) -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    return {"type": "image_url", "image_url": {"url": url}}
