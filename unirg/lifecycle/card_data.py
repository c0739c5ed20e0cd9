"""The data card of a cohort: the numbers of `unirg.cohort.card`, how they came about, and their terms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from unirg.artifact import Artifact
from unirg.cohort import card as cohort_card
from unirg.cohort.card import CUT
from unirg.cohort.card_page import Card, Table, listed, plain, rows
from unirg.cohort.reader import Cohort
from unirg.cohort.withdrawal import Withdrawn
from unirg.lifecycle.card_text import NOTICE, TAGS, front_matter, section
from unirg.lifecycle.lineage import Roll
from unirg.lifecycle.provenance import ancestors

LICENCES = {"Apache-2.0": "apache-2.0", "CC BY-NC-ND 4.0": "cc-by-nc-nd-4.0"}
"""Of corpora, as Hugging Face's hub spells them."""
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
"""Studies below which a data set is of a size, in the hub's words."""


def data_card(cohort: Artifact) -> str:
    """The README of a cohort as a data set; its numbers are those of `unirg.cohort.card`.

    Raises:
        ArtifactError: a file of the cohort, or an entry of its lineage, is missing or damaged.
    """
    opened = Cohort.open(cohort)
    card = cohort_card.read(opened.index, cohort.store, digest=cohort.digest)
    corpora = _corpora(card)
    studies = sum(shard.studies for shard in opened.index.shards)
    licences = {cohort_card.source(corpus).licence for corpus in corpora}
    known = LICENCES.get(min(licences)) if len(licences) == 1 else None
    about = {
        "license": known or "other",
        **({} if known else {"license_name": "see-sources"}),
        "pretty_name": f"UniRG cohort {', '.join(corpora)}",
        "task_categories": ["image-to-text"],
        "tags": list(TAGS),
        "size_categories": [next((name for below, name in SIZES if studies < below), "n>1M")],
    }
    lines = [f"# {plain(card.title, whole=True)}", "", f"**{NOTICE}**", "", *listed(card)]
    lines += section("How it was made", _made(cohort))
    lines += section("Terms", terms(corpora))
    gone = withdrawn(Roll.of(cohort), cohort.store).total()
    lines += section("Withdrawn studies", [withdrawn_words(gone, "it holds")])
    for table in card.tables:
        lines += rows(table)
    return front_matter(about) + "\n".join(lines) + "\n"


def table_of(card: Card, title: str) -> Table:
    return next(table for table in card.tables if table.title == title)


def _corpora(card: Card) -> list[str]:
    return [row[0] for row in table_of(card, "Corpora").rows if row[0] != CUT]


def terms(corpora: Sequence[str]) -> Iterator[str]:
    for corpus in corpora:
        origin = cohort_card.source(corpus)
        yield f"{corpus}: {origin.name}; {origin.licence}."
    if any(not cohort_card.source(corpus).open for corpus in corpora):
        yield (
            "Data under an agreement may be handed on, and so may what is made of them, only as far as the "
            "agreement allows: ask its owner first. This card grants nothing."
        )


def withdrawn(roll: Roll, store: str) -> Counter[str]:
    """Studies of a cohort that are withdrawn from a store, by split."""
    return Counter(row["split"] for row in roll.covered(Withdrawn.load(store)).to_pylist())


def withdrawn_words(number: int, what: str) -> str:
    """A sentence or two on how many studies are withdrawn; `what` ends "the studies that"."""
    told = f"{number:,} of the studies that {what} were withdrawn since."
    none = f"None of the studies that {what} is withdrawn from the store."
    return f"{told if number else none} What is withdrawn is kept out of every later cohort."


def _made(cohort: Artifact) -> Iterator[str]:
    """How images, splits and texts of a cohort came about, by the configuration of each cohort in it."""
    behind = ancestors(cohort.store, cohort.uri)
    parts = [made for made in behind.artifacts if made.manifest.stage == "cohort"]
    for made in [*parts, cohort]:
        config = made.manifest.config
        name = Cohort.open(made).index.corpus
        yield f"Cohort {made.digest[:16]} ({name}): {' '.join(_staged(config, name)) or 'how is not known.'}"
    if behind.unknown:
        yield "A part of its lineage cannot be read any more."


def _staged(config: dict[str, Any], name: str) -> Iterator[str]:
    if "size" in config and "resize" in config:
        yield f"Images are grey, 8 bits, {config['size']} x {config['size']} ({config['resize']})."
    split = config.get("split")
    if isinstance(split, dict):
        yield (
            "A split of the corpus's owner is honoured; other patients are divided whole, by a hash of their "
            f"id (seed {split.get('seed')}): {split.get('test', 0):.0%} test, "
            f"{split.get('validate', 0):.0%} validate."
        )
        if split.get("validation_studies"):
            yield f"{split['validation_studies']:,} studies of the owner's training split validate."
        if config.get("hold_out"):
            yield f"Held out of training as zero_shot: {', '.join(map(str, config['hold_out']))}."
    if config.get("splits"):
        yield "It takes some splits of its parts."
    yield from _deidentified(config, name)


def _deidentified(config: dict[str, Any], name: str) -> Iterator[str]:
    corpus = config.get("corpus")
    if corpus == "phantom":
        yield "Phantoms are drawn: there is nobody to identify."
    elif corpus == "institution":
        mode = config["institution"]["gate"]["mode"]
        done = "removed" if mode == "scrub" else "a reason to drop the study"
        yield (
            "Ids of studies and patients are keyed hashes; direct identifiers that patterns find in a text "
            f"are {done}. Patterns find the usual forms and no more."
        )
    elif corpus:
        yield f"{name} was de-identified by its owner, and its texts are used as they are."
