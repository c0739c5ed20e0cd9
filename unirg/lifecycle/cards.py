"""Model cards and data cards in Hugging Face's form: YAML front matter, then Markdown.

A card tells what manifests, a cohort's index, an evaluation and a verdict say, and nothing else; what they do
not say is said to be unknown. It names artifacts by digest and never by URI, so that no path of a machine is
handed around. There is no time in it: the same artifacts give the same bytes. After the model cards of
Mitchell et al. (2019) and the data sheets of Gebru et al. (2021), as far as manifests can fill them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from unirg import prompts
from unirg.artifact import Artifact
from unirg.cohort import card as cohort_card
from unirg.cohort.card_page import Card, Table, plain, rows
from unirg.cohort.reader import Cohort
from unirg.errors import UserError
from unirg.lifecycle import card_stages, gate
from unirg.lifecycle.card_data import data_card, table_of, terms, withdrawn, withdrawn_words
from unirg.lifecycle.card_results import Results
from unirg.lifecycle.card_text import NOTICE, TAGS, front_matter, section
from unirg.lifecycle.lineage import Roll, rolls
from unirg.lifecycle.provenance import Ancestors, Data, ancestors
from unirg.study import Image, Study

__all__ = ["data_card", "model_card"]

UNKNOWN_LICENCE = "unknown"
TASK = "image-text-to-text"
SHOWN = ("Corpora", "Institutions", "Splits")
"""Tables of a cohort that a model card repeats; its data card has all."""
COHORTS = 4
"""Cohorts whose tables a model card repeats, those of the last stages; the others it counts."""
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")


def model_card(
    checkpoint: Artifact,
    store: str,
    evaluation: Artifact | None = None,
    verdict: Artifact | None = None,
    licence: str = UNKNOWN_LICENCE,
) -> str:
    """The README of a checkpoint.

    Args:
        store: whose lineage and withdrawals count; `Artifact.store` of the checkpoint as a rule.
        evaluation: of stage `evaluate`, with this checkpoint among its systems.
        verdict: of stage `gate`, on this checkpoint.
        licence: of the weights, as the hub spells it (`apache-2.0`, `other`).

    Raises:
        UserError: the evaluation or the verdict is of another checkpoint, or the licence is none.
        ArtifactError: an artifact behind it cannot be read.
    """
    if not _LICENCE.fullmatch(licence):
        raise UserError(
            f"licence {licence!r} is not as the hub spells it: write one such as apache-2.0, or other"
        )
    judged = gate.read(verdict) if verdict else None
    if verdict and judged and not _roles(judged, checkpoint):
        raise UserError(f"the verdict {verdict.uri} is on another model than {checkpoint.uri}: name its own")
    results = Results.of(evaluation, checkpoint) if evaluation else None
    behind = ancestors(store, checkpoint.uri)
    return _Model(checkpoint, store, behind, results, verdict, judged, licence).card()


@dataclass(frozen=True)
class _Model:
    """One model card in the making."""

    checkpoint: Artifact
    store: str
    behind: Ancestors
    results: Results | None
    verdict: Artifact | None
    judged: dict[str, Any] | None
    licence: str

    @cached_property
    def line(self) -> list[card_stages.Stage]:
        return card_stages.stages(self.checkpoint, self.behind.artifacts)

    @cached_property
    def name(self) -> str:
        return f"unirg-{self.checkpoint.manifest.stage}-{self.checkpoint.digest[:12]}"

    @cached_property
    def learned(self) -> list[Data]:
        return [each for each in self.behind.data if each.learned]

    @cached_property
    def corpora(self) -> list[str]:
        """That it learned from."""
        found = (
            name for each in self.learned for name, splits in each.studies.items() if splits.get("train")
        )
        return sorted(set(found))

    @cached_property
    def cohorts(self) -> dict[str, Artifact]:
        """By digest, that it learned from and that are still there; the last first."""
        return trained_on(self.line, self.behind)

    @cached_property
    def cards(self) -> dict[str, Card]:
        """Of the last cohorts."""
        there = {digest: Cohort.open(made) for digest, made in list(self.cohorts.items())[:COHORTS]}
        return {digest: cohort_card.read(each.index, each.artifact.store) for digest, each in there.items()}

    def card(self) -> str:
        lines = [f"# {self.name}", "", f"**{NOTICE}**", ""]
        lines += ["A policy that writes the report of a chest radiograph, trained with UniRG."]
        lines += ["", plain(card_stages.origin(self.line), whole=True)]
        lines += section("Intended use", self._uses(), bullets=True)
        lines += section("How to use it", [self._snippet()], escaped=False)
        lines += section("Training", [])
        lines += rows(self._stages(), "###")
        lines += self._settings()
        lines += section("Training data", self._data(), bullets=True)
        for digest, card in self.cards.items():
            for table in card.tables:
                if table.title in SHOWN:
                    lines += rows(
                        Table(f"{table.title} of cohort {digest[:16]}", table.head, table.rows), "###"
                    )
        lines += self._evaluation()
        lines += section("Gate", self._gate(), bullets=True)
        lines += section("Limitations", self._limitations(), bullets=True)
        lines += section("Terms", self._stated_terms(), bullets=True)
        lines += section("Provenance", self._provenance(), bullets=True)
        return front_matter(self._about()) + "\n".join(lines) + "\n"

    def _about(self) -> dict[str, Any]:
        about: dict[str, Any] = {
            **{"license": self.licence, "library_name": "transformers", "pipeline_tag": TASK},
            "tags": [*TAGS, *(["toy"] if card_stages.is_toy(self.line) else [])],
        }
        if base := card_stages.hub_id(self.line):
            about["base_model"] = base
        if self.corpora:
            about["datasets"] = self.corpora
        if results := self._index():
            about["model-index"] = [{"name": self.name, "results": results}]
        return about

    def _index(self) -> list[dict[str, Any]]:
        """The hub's form of the headline numbers."""
        if not self.results:
            return []
        found: dict[str, list[dict[str, Any]]] = {}
        for split, metric, value in self.results.values():
            entry = {"type": metric, "value": value["mean"], "name": self.results.label(metric)}
            found.setdefault(split, []).append(entry)
        task = {"type": TASK, "name": "Radiology report generation"}
        corpus = self.results.corpus
        return [
            {"task": task, "dataset": {"type": corpus, "name": corpus, "split": split}, "metrics": metrics}
            for split, metrics in found.items()
        ]

    def _uses(self) -> Iterator[str]:
        yield "Intended: research on report generation, and comparison with other generators."
        yield (
            "Out of scope: diagnosis, triage, or any use in the care of a patient; reports that no "
            "radiologist reads; images other than frontal chest radiographs."
        )

    def _snippet(self) -> str:
        asked = Study(
            corpus="example",
            study_id="example",
            patient_id="example",
            institution="example",
            images=(Image(view="frontal"),),
            indication="[the indication]",
        )
        text = prompts.messages(asked, "both")[0]["content"][-1]["text"]
        said = [
            "It was trained with these prompts (`unirg.prompts`), and `unirg score` asks with them. The "
            "stock processor needs torchvision; `unirg.checkpoint.load_processor` does not."
        ]
        if not self._same_prompts:
            said = [
                "It was not trained, or with prompts of another wording than this version's, which is shown."
            ]
        size = self._staged("size")
        resized = f".resize(({size}, {size}))" if size else ""
        return "\n".join([*said, "", "```python", _SNIPPET.format(prompt=text, resized=resized), "```"])

    def _staged(self, setting: str) -> object:
        """A setting of how the images were staged that it saw last; None where that is not known."""
        last = next(iter(self.cohorts.values()), None)
        return last.manifest.config.get(setting) if last else None

    @property
    def _same_prompts(self) -> bool:
        used = self.checkpoint.manifest.inputs.get("prompts")
        return used is not None and used.digest == prompts.VERSION

    def _stages(self) -> Table:
        shown = [
            (
                each.name,
                each.counted("studies"),
                each.counted("steps"),
                str(each.config.get("seed", "not known")),
            )
            for each in self.line
        ]
        digests = [each.digest[:16] for each in self.line]
        heads = ("stage", "studies", "steps", "seed", "digest")
        return Table("Stages", heads, [(*row, digest) for row, digest in zip(shown, digests, strict=True)])

    def _settings(self) -> list[str]:
        lines = ["", "### Settings", ""]
        for each in self.line:
            told = "; ".join(each.settings()) or "not known"
            lines.append(f"- {plain(each.name)}: {plain(told, whole=True)}.")
        return lines

    def _data(self) -> Iterator[str]:
        if not self.learned:
            known = "and what lies behind it is not known" if self.behind.unknown else "in this lineage"
            yield f"It learned from no cohort, {known}."
        for each in self.learned:
            counts = "; ".join(
                f"{corpus}: {', '.join(f'{split} {number:,}' for split, number in splits.items())}"
                for corpus, splits in each.studies.items()
            )
            gone = "" if each.uri else ", which was dropped since"
            yield f"Cohort {each.digest[:16]}{gone}: {counts} studies. It was trained on the split train."
        if size := self._staged("size"):
            yield f"Images were staged at {size} x {size} pixels, grey, 8 bits ({self._staged('resize')})."
        for each in self.behind.data:
            if not each.learned:
                yield f"Cohort {each.digest[:16]} stands in its lineage, and it did not learn from it."
        if self.learned:
            yield withdrawn_words(sum(self._withdrawn().values()), "it learned from")

    def _withdrawn(self) -> dict[str, int]:
        """Withdrawn studies of the training split, by cohort."""
        digests = {each.digest for each in self.learned}
        known = [made for made in self.behind.artifacts if made.digest in digests]
        found = [*map(Roll.of, known), *(roll for roll in rolls(self.store) if roll.digest in digests)]
        return {roll.digest: withdrawn(roll, self.store)["train"] for roll in found}

    def _evaluation(self) -> list[str]:
        found = self.results
        if found is None:
            return section("Evaluation", ["No evaluation was given: how good it is is not known."])
        scorers, judge = (found.data[name] or "none" for name in ("scorers", "judge"))
        lines = section(
            "Evaluation",
            [
                f"Evaluation {found.evaluation.digest[:16]}, means with 95% intervals (bootstrap by patient, "
                f"{found.data['resamples']:,} resamples). Scorers with a model: {scorers}. Judge of clinical "
                f"errors: {judge}.",
            ],
        )
        for table in found.tables():
            lines += rows(table, "###")
        if worse := found.worse():
            lines += rows(worse, "###")
        else:
            ran = "subgroups" in found.suites and found.first
            told = (
                "No subgroup was found worse, of those large enough."
                if ran
                else "Subgroups were not compared."
            )
            lines += ["", told]
        lines += ["", "### Alarms", ""]
        raised = [f"- {plain(each, whole=True)}" for each in found.alarms()]
        return [*lines, *(raised or ["No suite that ran raised an alarm."])]

    def _gate(self) -> Iterator[str]:
        if not self.verdict or not self.judged:
            yield "No verdict was given: whether it may take a champion's place is not known."
            return
        roles = " and ".join(_roles(self.judged, self.checkpoint))
        yield f"Verdict {self.verdict.digest[:16]}, with this model as {roles}."
        yield from gate.sentences(self.judged)

    def _limitations(self) -> Iterator[str]:
        yield f"{NOTICE} No clinical study of it is known to this card."
        if card_stages.is_toy(self.line):
            yield "A policy of toy size, which shows that the machinery learns; it is no model worth serving."
        if self.corpora and all(name == "phantom" for name in self.corpora):
            yield "It was trained on drawn phantoms alone, and has never seen a radiograph of a patient."
        places = sorted(
            {row[0] for card in self.cards.values() for row in table_of(card, "Institutions").rows}
        )
        if places:
            yield f"Institutions in its cohorts: {', '.join(places)}. Of any other nothing is known."
        held = sorted(
            {fact for card in self.cards.values() for name, fact in card.facts if name == "Held out"}
        )
        if held and held != ["none"]:
            yield f"Held out of training in them: {'; '.join(held)}."
        shown = [each for each in self.line if each.config.get("prior_share")]
        if self.learned and not shown:
            yield "It was never shown an earlier study of the patient in training."
        if self.behind.unknown or any(each.made is None for each in self.line):
            yield "A part of its lineage cannot be read any more: what it learned from there is not known."
        if card_stages.hub_id(self.line):
            yield "What the published model that it starts from was trained on is not known here."
        yield from self.results.gaps() if self.results else ["It was not measured."]

    def _stated_terms(self) -> Iterator[str]:
        if self.licence == UNKNOWN_LICENCE:
            yield "Whoever exported these weights stated no licence."
        else:
            yield f"Licence of the weights, as stated by who exported them: {self.licence}."
        yield from terms(self.corpora)

    def _provenance(self) -> Iterator[str]:
        yield f"checkpoint: {self.checkpoint.digest}"
        yield from (f"stage {each.name}: {each.digest}" for each in self.line[:-1])
        yield from (f"cohort: {each.digest}" for each in self.behind.data)
        used = self.checkpoint.manifest.inputs
        for name in ("prompts", "weights", "metrics", "judge"):
            if name in used:
                yield f"{name} of its last stage: {used[name].digest}"
        if self.results:
            yield f"evaluation: {self.results.evaluation.digest}"
            yield from self.results.provenance()
        if self.verdict:
            yield f"verdict: {self.verdict.digest}"
        yield from (f"{name} {version}" for name, version in self.checkpoint.manifest.software.items())


def trained_on(line: Sequence[card_stages.Stage], behind: Ancestors) -> dict[str, Artifact]:
    """Digest -> the cohorts that a model learned from and that are there, those of the last stage first."""
    known = {made.digest: made for made in behind.artifacts if made.manifest.stage == "cohort"}
    learned = [each.digest for each in behind.data if each.learned]
    inputs = [each.made.manifest.inputs for each in reversed(line) if each.made]
    used = [named["cohort"].digest for named in inputs if "cohort" in named]
    return {digest: known[digest] for digest in [*used, *learned] if digest in learned and digest in known}


def _roles(judged: dict[str, Any], checkpoint: Artifact) -> list[str]:
    """What a checkpoint was in a verdict: challenger, champion, or nothing."""
    return [
        role for role in ("challenger", "champion") if (judged[role] or {}).get("digest") == checkpoint.digest
    ]


_SNIPPET = """\
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "."  # this folder, or its id on the hub
model = AutoModelForImageTextToText.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder)
prompt = {prompt!r}
messages = [{{"role": "user", "content": [{{"type": "image"}}, {{"type": "text", "text": prompt}}]}}]
text = processor.apply_chat_template(messages, add_generation_prompt=True)
image = Image.open("frontal.png").convert("RGB"){resized}  # a frontal chest radiograph
inputs = processor(text=[text], images=[image], return_tensors="pt")
written = model.generate(**inputs, max_new_tokens=512, do_sample=False)
print(processor.batch_decode(written[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)[0])"""
