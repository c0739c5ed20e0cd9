"""A cohort's data card: what is in it, where that came from, and what was left out, in HTML and Markdown.

Read in one pass over the columns that are counted, a batch at a time; images of the samples alone are read.
No text of a report is in it. An institution's card shows no image unless asked to, and no small count of
its patients: below ten one could be recognised. Nor are images of corpora that are gated or under an
agreement shown unasked: a card is handed around.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image as Pillow

from unirg import storage
from unirg.cohort import columns
from unirg.cohort.card_page import Card, Film, Table, html, markdown
from unirg.cohort.reader import Cohort, Index, Shard, stored_row
from unirg.cohort.withdrawal import REXRANK

HTML, MARKDOWN = "card.html", "card.md"
SAMPLES = 12
PIXELS = 256
"""Longest side of a sample image."""
SMALL = 10
"""Fewer studies of an institution than this are shown as `<10` in a table of its patients."""
MOST_VALUES = 1000
"""Distinct races and institutions that are counted one by one."""
MOST_ROWS = 25
OTHER, UNKNOWN = "other values", "not known"
CUT = "…"
"""Stands for the values that a long table leaves out."""
SPLITS = ("train", "validate", "test", "zero_shot")
TEXTS = ("findings", "impression", "indication", "comparison")
COUNTED = (
    "corpus",
    "institution",
    "split",
    "patient_id",
    "age",
    "sex",
    "race",
    "encounter",
    "prior_study_id",
)
VIEWS = ("images.list.element.view", "images.list.element.projection")


class Source(NamedTuple):
    name: str
    licence: str
    open: bool
    """Whether a card may show its images to anybody."""


SOURCES = {
    "phantom": Source("Phantoms, drawn by UniRG: no patient", "Apache-2.0", True),
    "iu_xray": Source("IU X-ray, Indiana University, through Open-i", "CC BY-NC-ND 4.0", True),
    "mimic_cxr": Source("MIMIC-CXR, PhysioNet", "credentialed access, data use agreement", False),
    "chexpert_plus": Source("CheXpert Plus, Stanford", "research licence", False),
    "rexgradient": Source("ReXGradient-160K", "gated access, its owner's terms", False),
}
INSTITUTION = Source("an institution's own data", "the institution's own terms", False)


def write_card(cohort: Cohort, target: Path, images: bool = False) -> None:
    """Write `card.html` and `card.md` into the folder `target`.

    Args:
        images: show sample images also of a corpus that is not open.

    Raises:
        ArtifactError: a shard is missing or damaged.
    """
    write(cohort.index, cohort.artifact.store, target, images, cohort.artifact.digest)


def write(index: Index, store: str, target: Path, images: bool = False, digest: str = "") -> None:
    """`write_card` for a cohort that is still in the making."""
    card = read(index, store, list(_films(index, store, images)), digest)
    with storage.explained(str(target)):
        target.mkdir(parents=True, exist_ok=True)
        (target / HTML).write_text(html(card), encoding="utf-8")
        (target / MARKDOWN).write_text(markdown(card), encoding="utf-8")


def read(index: Index, store: str, films: Sequence[Film] = (), digest: str = "") -> Card:
    """The card itself, for whoever shows its numbers in another form.

    Raises:
        ArtifactError: a shard is missing or damaged.
    """
    account = Account()
    for shard in index.shards:
        for batch in columns.batches(store, shard, [*COUNTED, *TEXTS, *VIEWS]):
            account.add(batch)
    return _card(index, account, digest, films)


def source(corpus: str) -> Source:
    """Where a corpus comes from; ReXrank's sets are of the corpora that they were taken from."""
    return SOURCES.get(corpus.removeprefix(REXRANK), INSTITUTION)


Tally = Counter[tuple[str, str]]
"""(value, split) -> studies."""


@dataclass
class Account:
    """Counts over the studies seen so far; its size depends on patients and distinct values alone."""

    places: Tally = field(default_factory=Counter)
    corpora: Tally = field(default_factory=Counter)
    views: Tally = field(default_factory=Counter)
    sections: Tally = field(default_factory=Counter)
    encounters: Tally = field(default_factory=Counter)
    sexes: Counter[str] = field(default_factory=Counter)
    ages: Counter[str] = field(default_factory=Counter)
    races: Counter[str] = field(default_factory=Counter)
    words: dict[str, Counter[int]] = field(default_factory=lambda: {name: Counter() for name in TEXTS})
    """Section -> number of words -> studies."""
    patients: set[tuple[str, str, str]] = field(default_factory=set)
    """(corpus, patient, split)."""

    def add(self, batch: pa.RecordBatch) -> None:
        rows = {name: batch.column(name).to_pylist() for name in COUNTED}
        splits = [split or UNKNOWN for split in rows["split"]]
        self.patients.update(zip(rows["corpus"], rows["patient_id"], splits, strict=True))
        self.corpora.update(zip(rows["corpus"], splits, strict=True))
        for place, split in zip(rows["institution"], splits, strict=True):
            self.places[_bounded(self.places, place, split)] += 1
        self.sexes.update(sex or UNKNOWN for sex in rows["sex"])
        self.ages.update(_band(age) for age in rows["age"])
        for race in rows["race"]:
            known = race in self.races or len(self.races) < MOST_VALUES
            self.races[(race if known else OTHER) if race else UNKNOWN] += 1
        for split, encounter, prior in zip(splits, rows["encounter"], rows["prior_study_id"], strict=True):
            nth = UNKNOWN if encounter is None else str(encounter) if encounter < 5 else "5 or later"
            self.encounters[nth, split] += 1
            self.encounters["with an earlier study of the patient", split] += prior is not None
        self._add_texts(batch, splits)
        for split, images in zip(splits, batch.column("images").to_pylist(), strict=True):
            self.views.update((_view(image), split) for image in images or ())

    def _add_texts(self, batch: pa.RecordBatch, splits: list[str]) -> None:
        there = {}
        for name in TEXTS:
            # In Arrow: Python would hold every word of a text of 10 MB at once.
            lengths = pc.count_substring_regex(batch.column(name), pattern=r"\S+").to_pylist()
            self.words[name].update(length for length in lengths if length is not None)
            there[name] = [length is not None for length in lengths]
            self.sections.update((name, split) for split, has in zip(splits, there[name], strict=True) if has)
        for split, findings, impression in zip(splits, there["findings"], there["impression"], strict=True):
            if findings and impression:
                self.sections["findings and impression", split] += 1


def _bounded(tally: Tally, value: str, split: str) -> tuple[str, str]:
    return (value, split) if (value, split) in tally or len(tally) < MOST_VALUES else (OTHER, split)


def _band(age: int | None) -> str:
    """Decades; from 90 on one band, as public corpora do not tell more either."""
    if age is None:
        return UNKNOWN
    return "90 and over" if age >= 90 else f"{age // 10 * 10:02d}\N{EN DASH}{age // 10 * 10 + 9:02d}"


def _view(image: Mapping[str, Any]) -> str:
    if image["view"] != "frontal":
        return str(image["view"])
    return f"frontal, {image['projection'] or 'projection ' + UNKNOWN}"


def _card(index: Index, account: Account, digest: str, films: Sequence[Film]) -> Card:
    corpora = sorted({corpus for corpus, _ in account.corpora})
    names = [split for split in (*SPLITS, UNKNOWN) if any(s == split for _, s in account.corpora)]
    private = any(corpus not in SOURCES for corpus in corpora)
    studies = sum(account.corpora.values())
    people = len({(corpus, patient) for corpus, patient, _ in account.patients})
    facts = [
        ("Studies", f"{studies:,}"),
        ("Patients", f"{people:,}"),
        ("Held out", ", ".join(index.hold_out) or "none"),
        ("Shards", f"{len(index.shards):,}"),
        ("Size", f"{sum(shard.bytes for shard in index.shards) / 1e6:,.1f} MB"),
    ]
    patients = Counter((split, "patients") for _, _, split in account.patients)
    by_place = _split_table("Institutions", "institution", account.places, names, total=True)
    tables = [
        _split_table("Corpora", "corpus", account.corpora, names, total=True),
        by_place,
        Table(
            "Splits",
            ("split", "patients", "studies", "shards", "MB"),
            [
                (
                    split,
                    f"{patients[split, 'patients']:,}",
                    *_sizes(s for s in index.shards if s.split == split),
                )
                for split in names
            ],
        ),
        _split_table("Images by view", "view, projection", account.views, names, total=True),
        _share_table("Sections", account.sections, account.corpora, names),
        Table("Words", ("section", "studies", "p50", "p95", "longest"), list(_lengths(account.words))),
        _patient_table("Sex", account.sexes, private),
        _patient_table("Age in years", account.ages, private),
        _patient_table("Race", account.races, private, merge=True),
        _split_table("Studies by their place in the patient's history", "study", account.encounters, names),
        _plain_table("Records that did not become studies", "reason", index.dropped),
        _plain_table("Met while reading", "what", index.account),
        _plain_table("Near-duplicates across splits", "kind, split of the study", index.duplicates),
        Table(
            "Sources",
            ("corpus", "source", "licence"),
            [(corpus, *source(corpus)[:2]) for corpus in corpora],
        ),
    ]
    notes = []
    if private:
        notes.append(
            f"Counts below {SMALL} of an institution's patients are shown as <{SMALL}; where one alone would "
            "follow from the total, the next larger is withheld too."
        )
    if not films:
        notes.append("No sample images: they are shown of open corpora, or where they are asked for.")
    if digest:
        facts.append(("Digest", digest[:16]))
    return Card(f"Cohort card: {index.corpus}", facts, tables, films, notes)


def _sizes(shards: Iterator[Shard]) -> tuple[str, str, str]:
    """Studies, shards, megabytes."""
    found = list(shards)
    size = sum(shard.bytes for shard in found) / 1e6
    return f"{sum(shard.studies for shard in found):,}", f"{len(found):,}", f"{size:,.1f}"


def _split_table(title: str, first: str, tally: Tally, names: list[str], total: bool = False) -> Table:
    """A row for each value, a column for each split."""
    values = _ordered(_over_splits(tally))
    rows = []
    for value in values:
        cells = [tally[value, split] for split in names]
        rows.append((value, *(f"{n:,}" for n in cells), *([f"{sum(cells):,}"] if total else [])))
    cut = [(CUT, *[""] * (len(rows[0]) - 1))] if len(rows) > MOST_ROWS else []
    note = f"The first {MOST_ROWS} of {len(rows)}." if cut else ""
    return Table(title, (first, *names, *(["all"] if total else [])), rows[:MOST_ROWS] + cut, note=note)


def _share_table(title: str, tally: Tally, studies: Tally, names: list[str]) -> Table:
    whole: Counter[str] = Counter()
    for (_, split), number in studies.items():
        whole[split] += number
    rows = [
        (name, *(f"{tally[name, split]:,} ({tally[name, split] / whole[split]:.1%})" for split in names))
        for name in (*TEXTS, "findings and impression")
    ]
    return Table(title, ("section", *names), rows)


def _plain_table(title: str, first: str, counts: Mapping[str, int]) -> Table:
    rows = [(name, f"{number:,}") for name, number in counts.items()] or [("none", "0")]
    return Table(title, (first, "studies"), rows)


def _patient_table(title: str, counts: Counter[str], private: bool, merge: bool = False) -> Table:
    """Studies by a property of the patient; an institution's small counts are hidden.

    Args:
        merge: values are the institution's own words, so rare ones are not named either.
    """
    if private and merge:
        merged: Counter[str] = Counter()
        for value, number in counts.items():
            merged[value if number >= SMALL or value == UNKNOWN else OTHER] += number
        counts = merged
    names = _ordered(counts)
    if merge and len(names) > MOST_ROWS:
        frequent = [name for name, _ in counts.most_common(MOST_ROWS) if name not in (OTHER, UNKNOWN)]
        kept = {name: counts[name] for name in frequent} | {UNKNOWN: counts[UNKNOWN]}
        counts = +Counter(kept | {OTHER: counts.total() - sum(kept.values())})
        names = _ordered(counts)
    hidden = {name for name in names if private and 0 < counts[name] < SMALL}
    if len(hidden) == 1 and len(names) > 1:
        hidden.add(min((name for name in names if name not in hidden), key=lambda name: counts[name]))
    most = max(counts.values(), default=1) or 1
    cells = {
        name: f"{counts[name]:,}"
        if name not in hidden
        else (f"<{SMALL}" if counts[name] < SMALL else "withheld")
        for name in names
    }
    return Table(
        title,
        ("value", "studies"),
        list(cells.items()),
        [None if name in hidden else counts[name] / most for name in names],
    )


def _ordered(counts: Counter[str]) -> list[str]:
    """Names in their order, what is no name last."""
    return sorted(counts, key=lambda name: (name in (OTHER, UNKNOWN), name))


def _over_splits(tally: Tally) -> Counter[str]:
    found: Counter[str] = Counter()
    for (value, _), number in tally.items():
        found[value] += number
    return found


def _lengths(words: Mapping[str, Counter[int]]) -> Iterator[tuple[str, ...]]:
    for name, lengths in words.items():
        studies = lengths.total()
        if studies:
            marks = (_at(lengths, 0.5), _at(lengths, 0.95), max(lengths))
            yield (name, *(f"{number:,}" for number in (studies, *marks)))
        else:
            yield (name, "0", "", "", "")


def _at(lengths: Counter[int], share: float) -> int:
    """The nearest-rank percentile."""
    left = share * lengths.total()
    for length in sorted(lengths):
        left -= lengths[length]
        if left <= 0:
            return length
    return max(lengths)


def _films(index: Index, store: str, images: bool) -> Iterator[Film]:
    """Key images of studies spread evenly over the cohort; one row group is read for each."""
    total = sum(shard.studies for shard in index.shards)
    places = sorted({number * total // SAMPLES for number in range(min(SAMPLES, total))})
    start = 0
    for shard in index.shards:
        mine = [place - start for place in places if start <= place < start + shard.studies]
        start += shard.studies
        if not mine:
            continue
        with columns.opened(store, shard) as file:
            for row in mine:
                study = stored_row(file, row, ["corpus", "images"])
                origin = SOURCES.get(study["corpus"], INSTITUTION)
                for image in study["images"] or ():
                    # An institution may call itself what a public corpus is called: it keeps no URIs.
                    if image["data"] and (images or (origin.open and image["uri"])):
                        yield Film(_view(image), _jpeg(image["data"]))


def _jpeg(png: bytes) -> str:
    with Pillow.open(io.BytesIO(png)) as opened:
        small = opened.convert("L")
    small.thumbnail((PIXELS, PIXELS), Pillow.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
