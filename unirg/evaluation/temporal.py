"""The temporal category of each study, by which the paper's Figure 3c splits them.

A patient's first study in the corpus has no prior and needs no reading. Of a later one the category comes
from the ground truth where the corpus has it (phantoms), else from a language model over the reference
report (`metrics.temporal.Labeller`). Where both are there the truth counts, and how far the model agrees with
it is told. A study without a category is left out of the split and counted with its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pyarrow as pa

from unirg import telemetry
from unirg.evaluation.candidates import reference
from unirg.metrics.cache import Cache, text_digest
from unirg.metrics.temporal import Answer, Label, Labeller
from unirg.study import Study

Category = Literal["first_study", "new_development", "no_change", "progression", "regression"]
CATEGORIES: tuple[Category, ...] = get_args(Category)
LABELS: dict[Category, str] = {
    "first_study": "First study",
    "new_development": "New development",
    "no_change": "No change",
    "progression": "Progression",
    "regression": "Regression",
}
"""How the paper names them."""
Truth = Callable[[Study], Category | None]

NO_LABELLER = "no labeller configured"
NO_ORDER = "the order of the patient's studies is not known"
NO_TEXT = "the reference has no text"
_PHANTOM: dict[str, Category] = {
    "first": "first_study",
    "new": "new_development",
    "none": "no_change",
    "progression": "progression",
    "regression": "regression",
}
"""As `cohort.corpora.phantom.findings.TemporalCategory` spells them."""
_CHUNK = 128
"""Reports between two writes to the cache: what a kill can cost."""


@dataclass(frozen=True)
class Temporal:
    """Categories of some studies, and where they come from."""

    categories: Mapping[str, Category]
    """By study_id; a study that is not here has none."""
    missing: Mapping[str, str]
    """study_id -> why it has none."""
    sources: Mapping[str, int]
    """Studies by where their category comes from: `order` (a first study), `truth`, `labeller`."""
    labeller: str | None = None
    """The model that was asked."""
    confusion: Mapping[tuple[str, str], int] | None = None
    """(truth, the model's) -> studies that have both; None where no model was held against a truth."""

    def record(self) -> dict[str, Any]:
        """As JSON types, without a study: what a report shows of the labels.

        Keys: `sources`, `labeller`, `missing` (reason -> studies), `agreement`: None, or `studies`, `agree`
        and `confusion` (`truth`, `labelled`, `studies` each).
        """
        agreement = None
        if self.confusion is not None:
            agreement = {
                "studies": sum(self.confusion.values()),
                "agree": sum(count for (true, said), count in self.confusion.items() if true == said),
                "confusion": [
                    {"truth": true, "labelled": said, "studies": count}
                    for (true, said), count in sorted(self.confusion.items())
                ],
            }
        return {
            "sources": dict(self.sources),
            "labeller": self.labeller,
            "missing": dict(sorted(Counter(self.missing.values()).items())),
            "agreement": agreement,
        }


def truth_of(table: pa.Table | None) -> Truth:
    """The categories of a cohort's ground truth (`Cohort.truth()`); of every study None without one."""
    known: dict[str, Category] = {}
    if table is not None and "temporal_category" in table.schema.names:
        columns = (table[name].to_pylist() for name in ("study_id", "temporal_category"))
        known = {
            study_id: _PHANTOM[said] for study_id, said in zip(*columns, strict=True) if said in _PHANTOM
        }
    return lambda study: known.get(study.study_id)


def assign(
    studies: Iterable[Study],
    labeller: Labeller | None = None,
    truth: Truth | None = None,
    cache: Cache | None = None,
) -> Temporal:
    """The category of each study.

    Args:
        labeller: is asked about every study that is not a patient's first, whether a truth is known or not.
        cache: keeps the labeller's answers by digest of the text; missing ones are asked for again.

    Raises:
        UserError: the labeller's endpoint cannot be reached, or refuses the key, the model or a setting.
    """
    studies = list(studies)
    later = {study.study_id: reference(study, "report") for study in studies if (study.encounter or 0) > 1}
    said: dict[str, Label] = {}
    if labeller:
        asked = list(dict.fromkeys(text for text in later.values() if text))
        known = _labels(labeller, asked, cache)
        said = {study_id: known[text] for study_id, text in later.items() if text}
    categories: dict[str, Category] = {}
    missing: dict[str, str] = {}
    sources = Counter(order=0, truth=0, labeller=0)
    confusion: Counter[tuple[str, str]] = Counter()
    for study in studies:
        found, source, why = _category(study, truth, said.get(study.study_id))
        if found is None:
            missing[study.study_id] = NO_TEXT if later.get(study.study_id) == "" else why
            continue
        categories[study.study_id] = found
        sources[source] += 1
        label = said.get(study.study_id)
        if source == "truth" and label and label.category:
            confusion[found, label.category] += 1
    compared = confusion if labeller and sources["truth"] else None
    return Temporal(categories, missing, sources, labeller.model if labeller else None, compared)


def _category(study: Study, truth: Truth | None, label: Label | None) -> tuple[Category | None, str, str]:
    """Category, where it comes from, and why there is none."""
    if study.encounter is None:
        return None, "", NO_ORDER
    if study.encounter == 1:
        return "first_study", "order", ""
    if truth and (known := truth(study)):
        return known, "truth", ""
    if label is None:
        return None, "", NO_LABELLER
    return label.category, "labeller", label.reason or ""


def _labels(labeller: Labeller, texts: Sequence[str], cache: Cache | None) -> dict[str, Label]:
    """The labels of distinct texts, those that are kept without a question."""
    identity = labeller.identity
    digests = {text: text_digest(text) for text in texts}
    found: dict[str, Label] = {}
    if cache:
        kept = cache.get(identity, list(digests.values()))
        for text, data in zip(digests, kept, strict=True):
            if data is not None:
                found[text] = Label(Answer.model_validate_json(data).category)
    waiting = [text for text in texts if text not in found]
    told = telemetry.Progress("evaluate: temporal categories", len(waiting), "reports")
    for start in range(0, len(waiting), _CHUNK):
        chunk = waiting[start : start + _CHUNK]
        fresh = dict(zip(chunk, labeller.label(chunk), strict=True))
        found |= fresh
        told.advance(len(chunk))
        if cache:
            answers = {
                text: Answer(category=label.category) for text, label in fresh.items() if label.category
            }
            cache.put(identity, {digests[text]: a.model_dump_json().encode() for text, a in answers.items()})
    told.finish()
    return found
