"""A small world with every artifact that evaluation reads, written through the real writers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image as Pillow
from PIL import ImageDraw

from unirg import artifact, storage
from unirg.artifact import Artifact
from unirg.cohort.reader import INDEX, Index, Shard
from unirg.config import Config
from unirg.study import Image, Study, to_table

SIZE = 64
FINDINGS = {
    "effusion": ("Small left pleural effusion.", "Left pleural effusion."),
    "cardiomegaly": ("The heart is enlarged.", "Cardiomegaly."),
    "pneumothorax": ("Small right apical pneumothorax.", "Right pneumothorax."),
    "normal": ("The lungs are clear. No pleural effusion or pneumothorax.", "No acute disease."),
}
WRONG = "Findings: A pacemaker is seen. Impression: Left rib fracture."


class Made(Config):
    """Configuration of an artifact that a test makes."""

    name: str = "toy"
    """Whatever tells two of them apart."""
    learning_rate: float = 1e-3
    """A number for the recipe."""
    alarms: dict[str, float] = {}
    """Limits, as `GRPOConfig` has them."""


@dataclass
class World:
    """Builds artifacts in one store."""

    store: Path
    studies: list[Study] = field(default_factory=list)

    def add(self, patient: str, split: str, *conditions: str, place: str = "north", **texts: Any) -> None:
        """A patient with one study per condition, in order of time."""
        prior = None
        for number, condition in enumerate(conditions):
            findings, impression = FINDINGS[condition]
            study = Study(
                corpus="phantom",
                study_id=f"{patient}-{number}",
                patient_id=patient,
                institution=place,
                split=split,  # type: ignore[arg-type]
                images=(Image(view="frontal", data=draw(condition)),),
                encounter=number + 1,
                prior_study_id=prior,
                **{"findings": findings, "impression": impression, "indication": "Cough.", **texts},
            )
            self.studies.append(study)
            prior = study.study_id

    def fill(self, patients: int = 12) -> World:
        """Patients of every split, each with two studies."""
        names = list(FINDINGS)
        for number in range(patients):
            first, second = names[number % 4], names[(number // 2) % 4]
            self.add(f"train{number:03d}", "train", first, "normal")
            self.add(f"test{number:03d}", "test", first, second, place=("north", "south")[number % 2])
            self.add(f"zero{number:03d}", "zero_shot", second, first, place="harbour")
        return self

    def cohort(self) -> Artifact:
        """The studies so far as a cohort artifact."""
        with artifact.draft(
            str(self.store), "cohort", 1, Made(), {"corpus": repr(len(self.studies))}
        ) as draft:
            if draft.committed:
                return draft.committed
            shards = []
            for split in sorted({str(study.split) for study in self.studies}):
                rows = [study for study in self.studies if study.split == split]
                buffer = io.BytesIO()
                pq.write_table(to_table(rows), buffer, row_group_size=4)
                data = buffer.getvalue()
                shard = Shard(sha256=storage.sha256(data), bytes=len(data), split=split, studies=len(rows))
                storage.put_new(storage.join(str(self.store), shard.name), data)
                shards.append(shard)
            index = Index(
                corpus="phantom",
                hold_out=("harbour",),
                shards=tuple(shards),
                dropped={},
                account={},
                duplicates={},
            )
            (draft.out / INDEX).write_text(index.model_dump_json())
            return draft.commit({"studies": len(self.studies)})

    def checkpoint(
        self, name: str, steps: int = 5, more: Sequence[Mapping[str, Any]] = (), **settings: float
    ) -> Artifact:
        """A checkpoint artifact with a trainer's log, as transformers writes it.

        Args:
            more: entries of the log after the steps' own.
            settings: limits of alarms.
        """
        with artifact.draft(str(self.store), "sft", 1, Made(name=name, alarms=settings), {}) as draft:
            if draft.committed:
                return draft.committed
            (draft.out / "model").mkdir()
            (draft.out / "model" / "config.json").write_text(json.dumps({"name": name}))
            (draft.out / "logs").mkdir()
            log: list[Mapping[str, Any]] = [
                {"step": step, "loss": 3 / step, "rewards/bleu2/mean": step / 9, "learning_rate": 1e-3}
                for step in range(1, steps + 1)
            ]
            log += [*more, {"step": steps, "train_runtime": 4.2, "loss": float("nan")}]
            (draft.out / "logs" / "train_log.jsonl").write_text("\n".join(map(json.dumps, log)))
            return draft.commit({"steps": steps})

    def predictions(
        self,
        name: str,
        cohort: Artifact,
        texts: Mapping[str, str],
        failures: Mapping[str, str] | None = None,
        model: Artifact | None = None,
        repeat: int = 1,
    ) -> Artifact:
        """A predictions artifact: study_id -> text, and study_id -> reason; `repeat` writes rows again."""
        inputs: dict[str, Artifact | str] = {"cohort": cohort}
        if model:
            inputs["model"] = model.digest
        identity = Made(name=f"{name} {storage.sha256(repr((texts, failures, repeat)).encode())}")
        with artifact.draft(str(self.store), "score", 1, identity, inputs) as draft:
            if draft.committed:
                return draft.committed
            rows = [
                {
                    **{"study_id": study_id, "text": text, "finish_reason": "stop"},
                    **{"prompt_tokens": 10, "completion_tokens": 10, "sections": "both", "with_prior": False},
                }
                for study_id, text in texts.items()
                for _ in range(repeat)
            ]
            lost = [{"study_id": key, "reason": why, "attempts": 3} for key, why in (failures or {}).items()]
            (draft.out / "predictions").mkdir()
            _write(draft.out / "predictions" / "000000.parquet", rows, ["study_id", "text", "finish_reason"])
            _write(draft.out / "failures.parquet", lost, ["study_id", "reason"])
            return draft.commit({"scored": len(rows), "failed": len(lost)})

    def answers(self, right: float, seed: int = 0) -> dict[str, str]:
        """study_id -> the reference for a share of the studies outside training, else a wrong report."""
        rng = np.random.default_rng(seed)
        texts = {}
        for study in self.studies:
            if study.split in ("test", "zero_shot"):
                wrong = FINDINGS[list(FINDINGS)[rng.integers(4)]]
                findings, impression = (study.findings, study.impression) if rng.random() < right else wrong
                texts[study.study_id] = f"Findings: {findings} Impression: {impression}"
        return texts


def bare(folder: Path) -> dict[str, str]:
    """Two prediction files as others bring them: ReXrank's form, and a CSV."""
    rexrank, rows = {}, [["study_id", "candidate"]]
    for number in range(30):
        findings, impression = FINDINGS[list(FINDINGS)[number % 4]]
        report = f"Findings: {findings} Impression: {impression}"
        rexrank[f"s{number}"] = {
            **{"study_id": f"s{number}", "section_findings": findings, "section_impression": impression},
            "model_prediction": report if number % 3 else WRONG,
        }
        rows.append([f"s{number}", report])
    (folder / "a.json").write_text(json.dumps(rexrank))
    with (folder / "b.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return {"a": str(folder / "a.json"), "b": str(folder / "b.csv")}


def _write(path: Path, rows: list[dict[str, Any]], strings: list[str]) -> None:
    empty = pa.schema([(name, pa.string()) for name in strings])
    pq.write_table(pa.Table.from_pylist(rows) if rows else empty.empty_table(), path)


def draw(condition: str, size: int = SIZE) -> bytes:
    """A PNG that stands for a radiograph."""
    picture = Pillow.new("L", (size, size), 40)
    pen = ImageDraw.Draw(picture)
    pen.ellipse((size * 0.1, size * 0.1, size * 0.45, size * 0.9), fill=15)
    pen.ellipse((size * 0.55, size * 0.1, size * 0.9, size * 0.9), fill=15)
    shade = 60 + 40 * list(FINDINGS).index(condition)
    pen.rectangle((size * 0.4, size * 0.4, size * 0.6, size * 0.8), fill=shade)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
