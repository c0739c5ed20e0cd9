"""Which studies train, validate, test, or are never trained on: by patient, by institution, by owner."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Container, Iterable, Sequence

from pydantic import Field, model_validator

from unirg.config import Config
from unirg.errors import UserError
from unirg.study import Split, Study

STRADDLES = "patient also in a held-out institution"
OFFICIAL_VALIDATION = "official validation set, another is drawn"


class SplitConfig(Config):
    """How studies without an owner's split are divided, always by patient."""

    test: float = Field(default=0.15, ge=0, lt=1)
    """Share of patients held out for testing."""
    validate_: float = Field(default=0.05, ge=0, lt=1, alias="validate")
    """Share of patients for validation during training."""
    seed: int = 0
    """Chooses the patients; a patient's split depends on nothing else, so it is stable as data grows."""
    validation_studies: int | None = Field(default=None, ge=1)
    """Draw so many studies of the owner's training split, in whole patients, to validate with in place of the
    owner's set (the paper: 1,024 of MIMIC-CXR's). For a corpus that does not grow: new patients would enter
    the draw."""

    @model_validator(mode="after")
    def _leaves_training(self) -> SplitConfig:
        if self.test + self.validate_ >= 1:
            raise ValueError(f"test {self.test} and validate {self.validate_} leave no patient for training")
        return self


def assign(
    studies: Iterable[Study],
    config: SplitConfig,
    hold_out: Sequence[str],
    drawn: Container[tuple[str, str]] | None = None,
) -> tuple[list[Study], Counter[str]]:
    """Give studies their splits, all of a patient's together; the studies kept, and counts dropped by reason.

    An owner's split is honoured. Studies of institutions (or corpora) in `hold_out` become `zero_shot`;
    another study of the same patient elsewhere is dropped, as it would show the patient in training.
    Where patients (corpus, patient_id) are `drawn` from the owner's training split, they validate and the
    owner's validation set is dropped.
    """
    studies = list(studies)
    held = {(s.corpus, s.patient_id) for s in studies if s.institution in hold_out or s.corpus in hold_out}
    kept: list[Study] = []
    dropped: Counter[str] = Counter()
    for study in studies:
        patient = study.corpus, study.patient_id
        away = study.institution in hold_out or study.corpus in hold_out
        if not away and patient in held:
            dropped[STRADDLES] += 1
            continue
        split: Split = "zero_shot" if away else study.split or patient_split(study, config)
        if drawn is not None and not away and study.split == "validate":
            dropped[OFFICIAL_VALIDATION] += 1
            continue
        if drawn is not None and split == "train" and study.split == "train" and patient in drawn:
            split = "validate"
        kept.append(study.model_copy(update={"split": split}))
    return kept, dropped


def check_hold_out(hold_out: Sequence[str], known: Collection[str]) -> None:
    """Raises: UserError where `hold_out` names an institution or corpus that has no study."""
    if unknown := sorted(set(hold_out) - set(known)):
        raise UserError(
            f"hold_out names {', '.join(unknown)}; institutions here are {', '.join(sorted(known))}"
        )


def draw(patients: Iterable[tuple[tuple[str, str], int]], number: int, seed: int) -> set[tuple[str, str]]:
    """Whole patients with exactly `number` studies together, in an order that the seed alone gives.

    `patients` are (corpus, patient_id) with how many studies each has. One whose studies are more than are
    still wanted is passed over.

    Raises:
        UserError: no such draw: fewer studies than wanted, or the last ones only in larger patients.
    """
    chosen: set[tuple[str, str]] = set()
    left = number
    for patient, studies in sorted(patients, key=lambda entry: _point(seed, *entry[0])):
        if studies <= left:
            chosen.add(patient)
            left -= studies
        if not left:
            return chosen
    raise UserError(
        f"validation_studies is {number}, and the owner's training split yields {number - left}: choose fewer"
    )


def patient_split(study: Study, config: SplitConfig) -> Split:
    """A patient's split, from a hash of the patient alone."""
    point = _point(config.seed, study.corpus, study.patient_id)
    if point < config.test:
        return "test"
    return "validate" if point < config.test + config.validate_ else "train"


def _point(seed: int, corpus: str, patient_id: str) -> float:
    """A patient's place in 0..1."""
    text = f"{seed}\0{corpus}\0{patient_id}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


class Disjoint:
    """Watches that no patient is in two splits, patient after patient."""

    SHOWN = 10

    def __init__(self) -> None:
        self._pairs, self._shown = 0, list[str]()

    def watch(self, studies: Iterable[Study]) -> None:
        """Take note of studies whose patient is in more than one split; all of a patient's come together."""
        first: dict[tuple[str, str], Study] = {}
        for study in studies:
            other = first.setdefault((study.corpus, study.patient_id), study)
            if other.split != study.split:
                self._pairs += 1
                if len(self._shown) < self.SHOWN:
                    self._shown.append(
                        f"{other.study_id} ({other.split}) and {study.study_id} ({study.split})"
                    )

    def check(self) -> None:
        """Raises: UserError with how many pairs were seen, and the first ones by study_id."""
        if self._pairs:
            shown = "; ".join(self._shown)
            raise UserError(f"{self._pairs} pairs of studies share a patient across splits: {shown}")
