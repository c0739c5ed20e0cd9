"""Which studies train, validate, test, or are never trained on: by patient, by institution, by owner."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from pydantic import Field, model_validator

from unirg.config import Config
from unirg.errors import UserError
from unirg.study import Split, Study

STRADDLES = "patient also in a held-out institution"


class SplitConfig(Config):
    """How studies without an owner's split are divided, always by patient."""

    test: float = Field(default=0.15, ge=0, lt=1)
    """Share of patients held out for testing."""
    validate_: float = Field(default=0.05, ge=0, lt=1, alias="validate")
    """Share of patients for validation during training."""
    seed: int = 0
    """Chooses the patients; a patient's split depends on nothing else, so it is stable as data grows."""

    @model_validator(mode="after")
    def _leaves_training(self) -> SplitConfig:
        if self.test + self.validate_ >= 1:
            raise ValueError(f"test {self.test} and validate {self.validate_} leave no patient for training")
        return self


def assign(
    studies: Iterable[Study], config: SplitConfig, hold_out: Sequence[str]
) -> tuple[list[Study], dict[str, int]]:
    """Give every study its split; return the studies kept and the counts dropped, by reason.

    An owner's split is honoured. Studies of institutions (or corpora) in `hold_out` become `zero_shot`;
    another study of the same patient elsewhere is dropped, as it would show the patient in training.

    Raises:
        UserError: `hold_out` names an institution that has no study, or the splits share a patient.
    """
    studies = list(studies)
    known = {study.institution for study in studies} | {study.corpus for study in studies}
    unknown = sorted(set(hold_out) - known)
    if unknown:
        raise UserError(
            f"hold_out names {', '.join(unknown)}; institutions here are {', '.join(sorted(known))}"
        )
    held = {
        (study.corpus, study.patient_id)
        for study in studies
        if study.institution in hold_out or study.corpus in hold_out
    }
    kept, straddling = [], 0
    for study in studies:
        away = study.institution in hold_out or study.corpus in hold_out
        if not away and (study.corpus, study.patient_id) in held:
            straddling += 1
            continue
        split: Split = "zero_shot" if away else study.split or patient_split(study, config)
        kept.append(study.model_copy(update={"split": split}))
    check_disjoint(kept)
    return kept, {STRADDLES: straddling} if straddling else {}


def patient_split(study: Study, config: SplitConfig) -> Split:
    """A patient's split, from a hash of the patient alone."""
    text = f"{config.seed}\0{study.corpus}\0{study.patient_id}"
    point = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
    if point < config.test:
        return "test"
    return "validate" if point < config.test + config.validate_ else "train"


def check_disjoint(studies: Iterable[Study]) -> None:
    """Raises: UserError naming studies whose patient is in more than one split."""
    first: dict[tuple[str, str], Study] = {}
    offenders = []
    for study in studies:
        other = first.setdefault((study.corpus, study.patient_id), study)
        if other.split != study.split:
            offenders += [f"{other.study_id} ({other.split}) and {study.study_id} ({study.split})"]
    if offenders:
        shown = "; ".join(offenders[:10])
        raise UserError(f"{len(offenders)} pairs of studies share a patient across splits: {shown}")
