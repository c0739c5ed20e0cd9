"""Which studies a model is asked about, with which images, in which words."""

from __future__ import annotations

import base64
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from unirg import prompt_recipes, prompts
from unirg.cohort.reader import Cohort
from unirg.errors import UserError
from unirg.prompt_recipes import PromptRecipe
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


def ask(cohort: Cohort, task: Task, with_priors: bool, recipe: PromptRecipe | None = None) -> Question:
    """Read a study's images and put its question together, as the recipe says; none is training's."""
    recipe = recipe or unirg()
    with_priors = recipe.sees_prior and (with_priors if recipe.with_priors is None else recipe.with_priors)
    prior = cohort.prior(task.study, images="prior" in recipe.shows) if with_priors else None
    shown = cohort.with_images(task.shown.study_id) if recipe.shows else task.shown
    shown_prior = prior
    if prior and task.shown is not task.study and "prior" in recipe.shows:
        shown_prior = cohort.prior(task.shown) or shown
    lateral = next((image.data for image in shown.images if image.view == "lateral" and image.data), None)
    chat = recipe.messages(task.study, prior, lateral is not None)
    pictures = {"lateral": lateral}
    if "current" in recipe.shows:
        (pictures["current"],) = prompts.images(shown)
    if shown_prior and "prior" in recipe.shows:
        (pictures["prior"],) = prompts.images(shown_prior)
    places = iter(recipe.places(task.study, prior, lateral is not None))
    for message in chat:
        message["content"] = [
            _image_part(pictures[next(places)] or b"", recipe) if part["type"] == "image" else part
            for part in message["content"]
        ]
    return Question(chat, recipe.wanted(task.study), prior is not None)


@cache
def unirg() -> PromptRecipe:
    """The recipe that our own policies were taught with."""
    return prompt_recipes.load()


def _image_part(png: bytes, recipe: PromptRecipe) -> dict[str, Any]:
    form = recipe.pictures.format
    url = f"data:image/{form};base64," + base64.b64encode(recipe.pictures.made(png)).decode()
    return {"type": "image_url", "image_url": {"url": url}}
