"""A model with its whole lineage, small enough for a test: real weights, real cohort, real evaluation."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.canary import CANARY
from tests.evaluation.worlds import World
from unirg import artifact, checkpoint, prompts, storage
from unirg.artifact import Artifact
from unirg.cohort.reader import INDEX, Cohort, Shard
from unirg.config import Config
from unirg.evaluation import aggregates
from unirg.evaluation import suites as all_suites
from unirg.evaluation.evaluate import STAGE, VERSION, EvaluateConfig, evaluate
from unirg.study import to_table
from unirg.training.policy import BaseConfig, ToyConfig, toy_policy

TINY = ToyConfig(hidden_size=32, vision_hidden_size=32, image_size=64, vocabulary=300, initializer_range=0.2)


class Trained(Config):
    """Settings of a training, as the trainers' own have them."""

    learning_rate: float = 5e-5
    """Peak learning rate."""
    schedule: str = "constant"
    """Decay."""
    warmup_steps: int = 0
    """Warm-up."""
    batch_size: int = 256
    """Studies a step."""
    seed: int = 0
    """Of the run."""
    kl: float | None = None
    """Of stage grpo."""
    rewards: dict[str, float] | None = None
    """Of stage grpo."""
    judge_model: str | None = None
    """Who counts errors."""
    judge_url: str = "https://user:secret@judge.example/v1"
    """Which no card shows."""
    source: str | None = None
    """Of stage base."""


class Asked(Config):
    """How a system was asked, of `ScoreConfig` what a card tells."""

    name: str = ""
    """Whatever tells two of them apart."""
    temperature: float = 0.0
    """0 is greedy."""
    with_priors: bool = False
    """Whether earlier studies were shown."""
    permute_images: int | None = None
    """A control's seed."""


@dataclass
class CardWorld:
    """The artifacts of one run, in one store."""

    store: str
    cohort: Artifact
    base: Artifact
    sft: Artifact
    grpo: Artifact
    """The second of two steps."""
    evaluation: Artifact

    @classmethod
    def build(cls, where: Path, evaluated: bool = True) -> CardWorld:
        world = World(where).fill(30)
        world.studies = [
            study.model_copy(update={"findings": f"{study.findings} {CANARY}"}) if number == 7 else study
            for number, study in enumerate(world.studies)
        ]
        cohort, store = world.cohort(), str(where)
        texts = [prompts.report(study) for study in world.studies]
        texts += [prompts.messages(study, "both")[0]["content"][-1]["text"] for study in world.studies]
        model, processor = toy_policy(TINY, texts, seed=0)
        with artifact.draft(store, "base", 1, BaseConfig(), {"cohort": cohort}) as draft:
            checkpoint.save(model, processor, draft.out / checkpoint.MODEL)
            base = draft.commit({"parameters": model.num_parameters()})
        own = cls(store, cohort, base, base, base, base)
        own.sft = own.tuned(base, seed=3)
        rewards = {"bleu2": 1.0, "errors": 0.5}
        step = own.tuned(own.sft, stage="grpo", steps=9, seed=4, kl=0.0, rewards=rewards)
        own.grpo = own.tuned(step, stage="grpo", steps=9, seed=5, kl=0.03, rewards=rewards)
        if evaluated:
            own.evaluation = own.evaluated(world)
        return own

    def checkpoint(
        self,
        stage: str,
        inputs: Mapping[str, Artifact | str],
        counts: Mapping[str, int] | None = None,
        **settings: Any,
    ) -> Artifact:
        """A checkpoint with the base's weights."""
        with artifact.draft(self.store, stage, 1, Trained(**settings), inputs) as draft:
            if draft.committed:
                return draft.committed
            shutil.copytree(self.base.directory / checkpoint.MODEL, draft.out / checkpoint.MODEL)
            (draft.out / checkpoint.MODEL / "generation_config.json").write_text(
                json.dumps({"eos_token_id": 2, "pad_token_id": 0, "made": draft.key})
            )
            (draft.out / "logs").mkdir()
            (draft.out / checkpoint.LOG).write_text(json.dumps({"step": 1, "loss": 1.0}))
            return draft.commit(counts)

    def tuned(
        self,
        parent: Artifact,
        cohort: Artifact | None = None,
        stage: str = "sft",
        steps: int = 7,
        **settings: Any,
    ) -> Artifact:
        inputs: dict[str, Artifact | str] = {"cohort": cohort or self.cohort}
        inputs |= {"parent": parent, "prompts": prompts.VERSION}
        return self.checkpoint(stage, inputs, {"studies": 60, "steps": steps}, **settings)

    def evaluated(self, world: World) -> Artifact:
        written = world.predictions("grpo", self.cohort, world.answers(0.6), model=self.grpo)
        scored = asked(written, self.store, Asked(name="grpo"))
        settings = EvaluateConfig(resamples=200, composite={"bleu2": 0.5, "rouge_l": 0.5})
        return evaluate(settings, self.cohort, {"grpo": scored}, {"grpo": self.grpo}, self.store)


def asked(predictions: Artifact, store: str, how: Asked) -> Artifact:
    """The same predictions, asked in another way."""
    inputs = _inputs(predictions)
    with artifact.draft(store, "score", 1, how, inputs) as draft:
        if draft.committed:
            return draft.committed
        _copy(predictions, draft.out)
        return draft.commit(predictions.manifest.counts)


def retold(
    evaluation: Artifact,
    data: Mapping[str, Any] | None = None,
    *,
    store: str,
    suites: Mapping[str, Any] | None = None,
    systems: Mapping[str, Mapping[str, Any]] | None = None,
    renames: Mapping[str, str] | None = None,
    inputs: Mapping[str, None] | None = None,
) -> Artifact:
    """An evaluation that says something else.

    Args:
        data: of `aggregates.json`; with toy scorers or a judge, these are in the composite.
        suites: of `suites.json`.
        systems: system -> how its predictions were asked.
        renames: system -> its name.
        inputs: that are left out.
    """
    told = aggregates.read(evaluation) | dict(data or {})
    if data:
        told["metrics"]["composite"] |= {"modelled": True, "judged": True}
    found = all_suites.read(evaluation) | dict(suites or {})
    texts = {aggregates.FILE: json.dumps(told), all_suites.FILE: json.dumps(found)}
    named = _inputs(evaluation)
    for old, new in (renames or {}).items():
        texts = {name: text.replace(json.dumps(old), json.dumps(new)) for name, text in texts.items()}
        named = {name.replace(f":{old}", f":{new}"): used for name, used in named.items()}
    for system, how in (systems or {}).items():
        before = named[f"predictions:{system}"]
        assert isinstance(before, Artifact)
        named[f"predictions:{system}"] = asked(before, store, Asked(name=system, **how))
    for name in inputs or ():
        del named[name]
    named["retold"] = storage.sha256(repr((texts, systems)).encode())
    with artifact.draft(store, STAGE, VERSION, EvaluateConfig(), named) as draft:
        if draft.committed:
            return draft.committed
        _copy(evaluation, draft.out)
        for name, text in texts.items():
            (draft.out / name).write_text(text)
        return draft.commit(evaluation.manifest.counts)


def renamed(
    cohort: Artifact, store: str, hold_out: str = "", config: Config | None = None, **changed: Any
) -> Artifact:
    """A cohort whose studies say something else, staged as `config` says."""
    opened = Cohort.open(cohort)
    shards = []
    for shard in opened.index.shards:
        studies = [
            study.model_copy(update=changed) for _, study in opened.rows(shard, [True] * shard.studies)
        ]
        buffer = io.BytesIO()
        pq.write_table(to_table(studies), buffer, row_group_size=4)
        made = buffer.getvalue()
        new = Shard(sha256=storage.sha256(made), bytes=len(made), split=shard.split, studies=shard.studies)
        storage.put_new(storage.join(store, new.name), made)
        shards.append(new)
    corpus = changed.get("corpus", opened.index.corpus)
    about = {"corpus": corpus, "shards": tuple(shards)} | ({"hold_out": (hold_out,)} if hold_out else {})
    index = opened.index.model_copy(update=about)
    config = config or Asked(name=repr(changed) + hold_out)
    with artifact.draft(store, "cohort", 1, config, {"corpus": "d"}) as draft:
        if draft.committed:
            return draft.committed
        (draft.out / INDEX).write_text(index.model_dump_json())
        return draft.commit({"studies": 180})


def _inputs(made: Artifact) -> dict[str, Artifact | str]:
    return {
        name: artifact.open_artifact(used.uri) if used.uri else used.digest
        for name, used in made.manifest.inputs.items()
    }


def _copy(made: Artifact, to: Path) -> None:
    for name in made.manifest.files:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made.path(name), to / name)
