"""Withdrawn studies and patients: tombstones that every later cohort of a store honours.

An entry below `<store>/withdrawn/` is one request: immutable, named by its content's SHA-256, put only if
it is not there. So repeating a request changes nothing, and of several writers none overwrites another.
Nothing takes an entry back. What is withdrawn is the union of all entries.

Ids are `corpus/study_id` and `corpus/patient_id` as the cohort has them. An institution names its own
numbers (`own_ids`): only their keyed hashes are written, and other ids of an institution are refused. What is
withdrawn of a public corpus is withdrawn of ReXrank's files of it (`rexrank_*`), whose studies tell whose
they are. A broken entry stops whoever asks: to pass over it
could bring a withdrawn patient back.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from unirg import journal, storage
from unirg.cohort.corpora import source
from unirg.cohort.corpora.institution import PATIENT_COLUMNS, SITE_KEY_VARIABLE, STUDY_COLUMNS
from unirg.config import canonical_json
from unirg.errors import UserError
from unirg.study import SAFE_ID, Study, keyed_id

FOLDER = "withdrawn"
LONGEST_LINE = 4096
"""Characters of a line in a file of ids; a safe id and its corpus have 257 at most."""

PUBLIC = ("phantom", "iu_xray", "mimic_cxr", "chexpert_plus", "rexgradient")
"""Corpora whose ids name nobody; ReXrank's are called `rexrank_` and one of these."""
REXRANK = "rexrank_"
_OPEN = re.compile(rf"(?:{REXRANK})?(?:{'|'.join(PUBLIC)})/.*")
_KEYED = re.compile(r".*/[0-9a-f]{24}")
"""As `keyed_id` makes them."""

Kind = Literal["study", "patient"]
COLUMNS: dict[str, tuple[str, ...]] = {"study": STUDY_COLUMNS, "patient": PATIENT_COLUMNS}
_REASON = r"[a-z][a-z0-9_-]{0,63}"
_ENTRY = re.compile(r"[0-9a-f]{64}\.json")


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    studies: tuple[str, ...]
    patients: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Withdrawn:
    """The studies and patients withdrawn from a store; false where there are none."""

    studies: frozenset[str] = frozenset()
    """`corpus/study_id`."""
    patients: frozenset[str] = frozenset()
    """`corpus/patient_id`."""

    @classmethod
    def of(cls, studies: Iterable[str] = (), patients: Iterable[str] = ()) -> Withdrawn:
        """Raises: UserError for an id that is none, or an institution's own number, by its position."""
        return cls(frozenset(_checked("study", studies)), frozenset(_checked("patient", patients)))

    @classmethod
    def load(cls, store: str) -> Withdrawn:
        """Everything withdrawn from the store so far.

        Raises:
            UserError: an entry is damaged, or a file there is no entry.
        """
        studies: set[str] = set()
        patients: set[str] = set()
        for entry in _entries(store):
            studies.update(entry.studies)
            patients.update(entry.patients)
        return cls(frozenset(studies), frozenset(patients))

    def __bool__(self) -> bool:
        return bool(self.studies or self.patients)

    @property
    def digest(self) -> str:
        """Identity of the set, however many entries it came in and whatever their reasons."""
        return storage.sha256(canonical_json([sorted(self.studies), sorted(self.patients)]))

    def covers(self, study: Study) -> bool:
        return self.holds(study.corpus, study.study_id, study.patient_id)

    def holds(self, corpus: str, study_id: str, patient_id: str) -> bool:
        """`covers` for a study of which only the ids are at hand."""
        return bool(self.naming(corpus, study_id, patient_id))

    def naming(self, corpus: str, study_id: str, patient_id: str) -> Withdrawn:
        """The entries that cover a study."""
        study, patient = original(corpus, study_id, patient_id)
        return Withdrawn(
            self.studies.intersection((f"{corpus}/{study_id}", study)),
            self.patients.intersection((f"{corpus}/{patient_id}", patient)),
        )

    def of_corpus(self, corpus: str) -> Withdrawn:
        """The part that concerns one corpus: another one's withdrawals need not make its cohorts anew."""
        start = (f"{corpus}/", f"{corpus.removeprefix(REXRANK)}/")
        return Withdrawn(
            frozenset(name for name in self.studies if name.startswith(start)),
            frozenset(name for name in self.patients if name.startswith(start)),
        )


def original(corpus: str, study_id: str, patient_id: str) -> tuple[str, str]:
    """`corpus/study_id` and `corpus/patient_id`; of a study of ReXrank's, those of the one that it took."""
    if corpus.startswith(REXRANK):
        corpus = corpus.removeprefix(REXRANK)
        # MIMIC-CXR: p10_p10999901_s50999901; IU X-ray: CXR1_IM-0001, its patient is the original's study.
        study_id = {"mimic_cxr": study_id.rpartition("_")[2], "iu_xray": patient_id}.get(corpus, study_id)
    return f"{corpus}/{study_id}", f"{corpus}/{patient_id}"


def withdraw(
    store: str,
    studies: Sequence[str] = (),
    patients: Sequence[str] = (),
    reason_code: str = "withdrawn",
) -> str:
    """Withdraw studies and patients from every later cohort of the store; the URI of the entry.

    Raises:
        UserError: an id or the reason is not of its form, or there is nothing to withdraw.
    """
    if not re.fullmatch(_REASON, reason_code):
        raise UserError("the reason is a code: lower-case letters, digits, _ and -, no free text")
    found = Withdrawn.of(studies, patients)
    if not found:
        raise UserError("nothing to withdraw: name studies or patients, such as corpus/study_id")
    entry = _Entry(
        studies=tuple(sorted(found.studies)), patients=tuple(sorted(found.patients)), reason=reason_code
    )
    data = canonical_json(entry.model_dump(mode="json"))
    name = f"{storage.sha256(data)}.json"
    uri = storage.join(store, FOLDER, name)
    storage.put_new(uri, data)
    counts = {"studies": str(len(found.studies)), "patients": str(len(found.patients))}
    journal.append(store, "withdraw", {"entry": f"{FOLDER}/{name}", **counts}, reason_code)
    return uri


def own_ids(
    institution: str, kind: Kind, values: Sequence[str], environ: Mapping[str, str] = os.environ
) -> list[str]:
    """An institution's own study or patient numbers -> the ids that its cohorts have.

    A study's number is what its row has in the first of `STUDY_COLUMNS` that it fills; a patient's likewise.

    Raises:
        UserError: no site key, or a value is empty.
    """
    if not re.fullmatch(SAFE_ID, institution):
        raise UserError("the institution's name may hold only letters, digits and _ . / -")
    try:
        site_key = bytes.fromhex(environ.get(SITE_KEY_VARIABLE, ""))
    except ValueError:
        site_key = b""
    if len(site_key) < 16:
        raise UserError(
            f"{SITE_KEY_VARIABLE} does not hold a key of 16 bytes or more in hexadecimal: "
            "export the one that the institution was staged with"
        )
    ids = []
    for number, value in enumerate(values, 1):
        if not value.strip():
            raise UserError(f"{kind} {number} is empty: remove it")
        ids.append(f"{institution}/{keyed_id(site_key, kind, value.strip())}")
    return ids


def ids_from_file(uri: str, kind: Kind, institution: str = "") -> list[str]:
    """The ids in a file: a text with one on each line (`#` begins a remark), or a CSV with a header.

    Args:
        institution: the file holds this institution's own numbers; else ids with their corpus.

    Raises:
        UserError: the file is missing, not UTF-8, or a line holds no id; the line is named, not its text.
    """
    folder, slash, name = uri.rpartition("/")
    label = "the file of ids"
    read = _csv_lines if name.lower().endswith(".csv") else _text_lines
    options = {"encoding": "utf-8-sig", "newline": ""}
    values: list[str] = []
    try:
        with source.opened(folder or slash or ".", name, label, "rt", **options) as file:
            for line, value in read(file, kind):
                if not value or not (institution or _is_id(value)):
                    raise UserError(f"{label}: line {line} is no id such as corpus/{kind}_id: correct it")
                values.append(value)
    except FileNotFoundError:
        raise UserError(f"{label} does not exist: check its name") from None
    except UnicodeDecodeError:
        raise UserError(f"{label} is not UTF-8 after {len(values)} ids: save it again as UTF-8") from None
    if not values:
        raise UserError(f"{label} holds no id")
    return own_ids(institution, kind, values) if institution else values


def _text_lines(file: IO[str], kind: Kind) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(_lines(file), 1):
        value = line.partition("#")[0].strip()
        if value:
            yield number, value


def _csv_lines(file: IO[str], kind: Kind) -> Iterator[tuple[int, str]]:
    reader = csv.reader(_lines(file), strict=True)
    try:
        header = [column.strip().lower() for column in next(reader, [])]
        columns = [header.index(name) for name in COLUMNS[kind] if name in header]
        if not columns:
            raise UserError(f"the file of ids has no column {' or '.join(COLUMNS[kind])} in its first line")
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise UserError(f"the file of ids: line {reader.line_num} has not as many fields as line 1")
            # As the institution is staged: the first that the row fills.
            yield reader.line_num, next((value for at in columns if (value := row[at].strip())), "")
    except csv.Error:
        raise UserError(f"the file of ids: line {reader.line_num} is not valid CSV: correct it") from None


def _lines(file: IO[str]) -> Iterator[str]:
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise UserError(f"the file of ids: line {number} has more than {LONGEST_LINE} characters")
        yield line


def _is_id(value: str) -> bool:
    """Whether it can be split into a corpus and an id, both safe; either may hold a slash of its own."""
    parts = value.split("/")
    return any(
        re.fullmatch(SAFE_ID, "/".join(parts[:cut])) and re.fullmatch(SAFE_ID, "/".join(parts[cut:]))
        for cut in range(1, len(parts))
    )


def _checked(kind: Kind, values: Iterable[str]) -> Iterator[str]:
    for number, value in enumerate(values, 1):
        if not _is_id(value):
            raise UserError(f"{kind} {number} is no id such as corpus/{kind}_id: correct it")
        if not (_OPEN.fullmatch(value) or _KEYED.fullmatch(value)):
            raise UserError(
                f"{kind} {number} is neither of a public corpus ({', '.join(PUBLIC)}, {REXRANK}...) "
                "nor keyed: name an institution's own numbers with --institution, which hashes them"
            )
        yield value


def _entries(store: str) -> Iterator[_Entry]:
    folder = storage.join(store, FOLDER)
    try:
        with storage.explained(folder):
            fs, path = storage.open_fs(folder)
            names = sorted(str(found).rpartition("/")[2] for found in fs.ls(path, detail=False))
    except FileNotFoundError:
        return
    for name in names:
        if name.startswith(".") or not name:  # what a writer that was killed left beside
            continue
        uri = storage.join(folder, name)
        if not _ENTRY.fullmatch(name):
            raise UserError(f"{uri} is no withdrawal: remove it, and use `unirg withdraw`")
        data = storage.read_bytes(uri)
        if f"{storage.sha256(data)}.json" != name:
            raise UserError(f"{uri} is altered or truncated: restore it from a copy")
        try:
            yield _Entry.model_validate_json(data)
        except ValidationError:
            raise UserError(f"{uri} is no withdrawal of this version: update unirg") from None
