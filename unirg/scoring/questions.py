"""Which studies a model is asked about, in which order, with which images, in which words.

Studies come in ranges of consecutive shards of their cohort. A range is read from its beginning to its end,
a few studies at a time, so that memory does not depend on how many there are.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pybase64

from unirg import prompts
from unirg.cohort.reader import Cohort, Shard
from unirg.errors import UserError
from unirg.prompt_recipes import PromptRecipe
from unirg.study import Split, Study


@dataclass(frozen=True)
class Range:
    """Consecutive studies: of each shard the first so many."""

    number: int
    parts: tuple[tuple[Shard, int], ...]

    @property
    def studies(self) -> int:
        return sum(count for _, count in self.parts)


def ranges(cohort: Cohort, splits: Sequence[Split], limit: int | None, size: int) -> list[Range]:
    """The studies of these splits in the cohort's order, of each split the first `limit`.

    Args:
        size: studies of a range, at least; it ends with a shard.
    """
    left: dict[str, int | None] = dict.fromkeys(splits, limit)
    parts: list[tuple[Shard, int]] = []
    made: list[Range] = []
    for shard in cohort.index.shards:
        if shard.split not in splits:
            continue
        room = left[shard.split]
        count = shard.studies if room is None else min(room, shard.studies)
        if room is not None:
            left[shard.split] = room - count
        if count:
            parts.append((shard, count))
        if sum(count for _, count in parts) >= size:
            made.append(Range(len(made), tuple(parts)))
            parts = []
    return [*made, Range(len(made), tuple(parts))] if parts else made


@dataclass(frozen=True)
class Question:
    """One study's, and what the prediction tells about it."""

    place: int
    """In its range."""
    study: Study
    """Without image data."""
    messages: list[dict[str, Any]]
    """The chat, images inside."""
    sections: prompts.Sections
    with_prior: bool


Shown = Callable[[Study], Study]
"""A study -> the one whose images are shown for it, with its images."""


@dataclass(frozen=True)
class Asking:
    """How studies are asked about."""

    recipe: PromptRecipe
    with_priors: bool = False
    """Where the recipe leaves it open."""
    shown: Shown | None = None


def questions(cohort: Cohort, asked: Range, done: Container[int], how: Asking) -> Iterator[Question]:
    """The questions of a range in order, but for those whose places are `done`."""
    place = 0
    for shard, count in asked.parts:
        wanted = [place + row not in done for row in range(count)]
        if any(wanted):
            for row, study in cohort.rows(shard, wanted):
                yield _question(cohort, place + row, study, how)
        place += count


def _question(cohort: Cohort, place: int, study: Study, how: Asking) -> Question:
    """Put together as the recipe says; the one of our own policies does as training does."""
    recipe = how.recipe
    with_prior = recipe.sees_prior and (how.with_priors if recipe.with_priors is None else recipe.with_priors)
    prior = cohort.earlier(study) if with_prior else None
    shown, shown_prior = study, prior
    if how.shown:
        shown = how.shown(study)
        if prior:
            shown_prior = cohort.earlier(shown) or shown
    lateral = next((image.data for image in shown.images if image.view == "lateral" and image.data), None)
    pictures = {"lateral": lateral}
    if "current" in recipe.shows:
        (pictures["current"],) = prompts.images(shown)
    if shown_prior and "prior" in recipe.shows:
        (pictures["prior"],) = prompts.images(shown_prior)
    chat = recipe.messages(study, prior, lateral is not None)
    places = iter(recipe.places(study, prior, lateral is not None))
    for message in chat:
        message["content"] = [
            _image_part(pictures[next(places)] or b"", recipe) if part["type"] == "image" else part
            for part in message["content"]
        ]
    bare = study.model_copy(update={"images": ()})
    return Question(place, bare, chat, recipe.wanted(study), prior is not None)


def _image_part(png: bytes, recipe: PromptRecipe) -> dict[str, Any]:
    form = recipe.pictures.format
    url = f"data:image/{form};base64," + pybase64.b64encode_as_string(recipe.pictures.made(png))
    return {"type": "image_url", "image_url": {"url": url}}


def body(question: Question, parameters: dict[str, Any]) -> bytes:
    """The request but for the model's name, which a deployment chooses: its digest says what was asked."""
    return orjson.dumps({"messages": question.messages} | parameters)


def permutation(cohort: Cohort, splits: Sequence[Split], seed: int) -> Shown:
    """Another study's images for each study of these splits.

    Raises:
        UserError: a split has one study alone.
    """
    other: dict[str, str] = {}
    for split in splits:
        studies = cohort.studies(split)
        pairs = zip(studies, permuted(studies, seed), strict=True)
        other.update((study.study_id, shown.study_id) for study, shown in pairs)
    return lambda study: cohort.with_images(other[study.study_id])


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
