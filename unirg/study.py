"""The one record that everything passes along: a study, its images, and its place in time.

Parquet with `SCHEMA` is the only form on disk. Neither an error nor a `repr` ever shows content:
a broken rule is reported by corpus, study_id and field.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NaiveDatetime,
    ValidationError,
    model_validator,
)

from unirg.errors import UserError

Split = Literal["train", "validate", "test", "zero_shot"]
View = Literal["frontal", "lateral", "other", "unknown"]
Projection = Literal["PA", "AP"]
Sex = Literal["F", "M", "O"]
AcquiredBasis = Literal["timestamp", "date", "report_date", "ordinal"]

SAFE_ID = r"^[A-Za-z0-9][A-Za-z0-9_./-]{0,127}$"
SECTIONS = ("findings", "impression")


class StudyError(UserError):
    """A record that breaks a rule of `Study`, named by corpus, study_id and field, never by content."""

    def __init__(self, corpus: str, study_id: str, field: str, rule: str) -> None:
        self.corpus, self.study_id, self.field, self.rule = corpus, study_id, field, rule
        super().__init__(f"{corpus}: study {study_id}: field {field}: {rule}")

    def __reduce__(self) -> tuple[type[StudyError], tuple[str, str, str, str]]:
        return StudyError, (self.corpus, self.study_id, self.field, self.rule)  # it crosses process pools


def _blank_is_missing(value: Any) -> Any:
    """Collapse an empty or whitespace-only text to None, so that 'missing' has one form."""
    if not isinstance(value, str):
        return value
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON may hold half a surrogate pair, Parquet may not
        raise ValueError("not valid Unicode") from None
    return value.strip() or None


Text = Annotated[str | None, BeforeValidator(_blank_is_missing)]
SafeId = Annotated[str, Field(pattern=SAFE_ID)]


class _Record(BaseModel):
    # hide_input_in_errors: a validation error must not print what a report says.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Image(_Record):
    """One radiograph of a study.

    `uri` is where an adapter reads it. In a staged cohort `data` holds the decoded image as an
    8-bit greyscale PNG and `uri` is kept for public corpora only (an institution's paths may
    identify a patient).
    """

    view: View = "unknown"
    projection: Projection | None = None
    uri: str | None = Field(default=None, repr=False)
    data: bytes | None = Field(default=None, repr=False)


class Study(_Record):
    """One exam of a patient, with its images and its report.

    `study_id` and `patient_id` are safe to print: public corpora keep their own, an institution's
    are keyed hashes (`keyed_id`). A missing text is None, never an empty string.
    """

    corpus: SafeId
    study_id: SafeId
    patient_id: SafeId
    institution: SafeId
    split: Split | None = None
    acquired_at: NaiveDatetime | None = None
    """When the exam was taken, without a time zone, as on disk; de-identified corpora shift it, so only its
    order within a patient counts."""
    acquired_basis: AcquiredBasis | None = None
    """What `acquired_at` rests on. None exactly where `acquired_at` is None."""
    age: Annotated[int, Field(ge=0, le=120)] | None = None
    """Years at the exam."""
    sex: Sex | None = None
    race: Text = None
    images: tuple[Image, ...] = ()
    indication: Text = Field(default=None, repr=False)
    comparison: Text = Field(default=None, repr=False)
    findings: Text = Field(default=None, repr=False)
    impression: Text = Field(default=None, repr=False)
    encounter: Annotated[int, Field(ge=1)] | None = None
    """1 for the patient's first study in the corpus, 2 for the next; None where order is unknown."""
    prior_study_id: SafeId | None = None
    """The same patient's most recent strictly earlier study with a frontal image."""

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        if (self.acquired_at is None) != (self.acquired_basis is None):
            raise ValueError("acquired_at and acquired_basis go together")
        if self.prior_study_id is not None and self.prior_study_id == self.study_id:
            raise ValueError("prior_study_id names the study itself")
        return self

    def __repr__(self) -> str:
        return f"Study({self.corpus}/{self.study_id})"

    __str__ = __repr__

    @classmethod
    def checked(cls, **fields: Any) -> Study:
        """Build a study, turning a broken rule into a `StudyError` that shows no content.

        An id that itself breaks the rule of a safe id may hold anything, so it is not printed.
        """
        try:
            return cls(**fields)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False, include_context=False)[0]
            location = ".".join(str(part) for part in first["loc"]) or "record"
            bad_id = {"study_id", "corpus"} & {str(e["loc"][0]) for e in error.errors() if e["loc"]}
            name = "(unsafe id)" if bad_id else str(fields.get("study_id"))
            corpus = "(unsafe corpus)" if "corpus" in bad_id else str(fields.get("corpus"))
            raise StudyError(corpus, name, location, first["msg"]) from None

    @property
    def key_image(self) -> Image | None:
        """The radiograph that the policy sees: PA before AP before unknown, then the adapter's order."""
        frontal = [image for image in self.images if image.view == "frontal"]
        rank = {"PA": 0, "AP": 1, None: 2}
        return min(frontal, key=lambda image: rank[image.projection], default=None)


def keyed_id(site_key: bytes, kind: str, value: str) -> str:
    """Hash an institution's own identifier so that only the holder of the key can link it.

    HMAC-SHA256 over kind and value, 96 bits in hex (a collision among 10^8 studies: about 10^-13).

    Raises:
        UserError: the key is shorter than 16 bytes (it could be guessed, and the ids then reversed).
    """
    if len(site_key) < 16:
        raise UserError("the site key is shorter than 16 bytes: create one with `openssl rand -hex 32`")
    digest = hmac.new(site_key, f"{kind}\0{value}".encode(), hashlib.sha256)
    return digest.hexdigest()[:24]


SCHEMA = pa.schema(
    [
        pa.field("corpus", pa.string(), nullable=False),
        pa.field("study_id", pa.string(), nullable=False),
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("institution", pa.string(), nullable=False),
        pa.field("split", pa.string()),
        pa.field("acquired_at", pa.timestamp("us")),
        pa.field("acquired_basis", pa.string()),
        pa.field("age", pa.int16()),
        pa.field("sex", pa.string()),
        pa.field("race", pa.string()),
        pa.field(
            "images",
            pa.list_(
                pa.struct(
                    [
                        pa.field("view", pa.string(), nullable=False),
                        pa.field("projection", pa.string()),
                        pa.field("uri", pa.string()),
                        pa.field("data", pa.binary()),
                    ]
                )
            ),
        ),
        pa.field("indication", pa.string()),
        pa.field("comparison", pa.string()),
        pa.field("findings", pa.string()),
        pa.field("impression", pa.string()),
        pa.field("encounter", pa.int32()),
        pa.field("prior_study_id", pa.string()),
    ]
)


def to_table(studies: Iterable[Study]) -> pa.Table:
    """Studies -> an Arrow table with `SCHEMA`, in the order given."""
    return pa.Table.from_pylist([study.model_dump() for study in studies], schema=SCHEMA)


def from_table(table: pa.Table) -> Iterator[Study]:
    """An Arrow table with `SCHEMA` -> studies, validated.

    Raises:
        UserError: the table's columns are not those of `SCHEMA`.
        StudyError: a row breaks a rule.
    """
    try:
        exact = table.cast(SCHEMA)  # Parquet forgets `nullable=False` inside lists
    except (pa.ArrowException, ValueError):
        differing = sorted(set(table.schema.names) ^ set(SCHEMA.names)) or ["types differ"]
        raise UserError(
            f"not a table of studies: {', '.join(differing)}; stage it again with this version"
        ) from None
    for row in exact.to_pylist():
        yield Study.checked(**row)
