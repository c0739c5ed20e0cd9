"""A hospital that retrains: its incoming folder, its cluster, its registry, the pipeline `retrain` on them.

Real are the pipeline as KFP's local runner drives it, every component and all that they call: staging,
training (a step of a tiny policy), scoring by our client, evaluation, gate, registry, promotion. Played are
Kubernetes and KServe (`tests/kubernetes.py`, `tests/serving/kserve.py`) and vLLM, which answers for each
model as well as the test has decided: so a challenger is better, or worse for some, on purpose.
"""

from __future__ import annotations

import base64
import hashlib
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from tests.kubernetes import Server
from tests.lifecycle.arrivals import Exam, Site
from tests.serving.kserve import KServe, chats, inside, said
from unirg import config, journal, processes, prompts
from unirg.cohort.grow import grow
from unirg.cohort.reader import Cohort
from unirg.lifecycle import audit
from unirg.lifecycle.cycle import Cycles, End
from unirg.lifecycle.lineage import artifacts
from unirg.lifecycle.promote import Decided, Production, PromoteConfig, promote
from unirg.lifecycle.registry import Registry
from unirg.lifecycle.retrain import RetrainConfig
from unirg.lifecycle.watch import watch
from unirg.scoring.archive import ScoreConfig
from unirg.serving import inference_service as isvc
from unirg.serving.endpoint import ServeConfig
from unirg.study import Study
from unirg.training import train

SERVICE = "cxr"
FIRST, WEEKLY = 300, 24
"""Studies of the first delivery and of each later one."""
CLUSTER = {"namespace": "unirg", "ready_timeout_s": 60.0, "memory": "1Gi"}
RECIPES: dict[str, Any] = {
    "retrain": {
        "steps": ["sft"],
        "watch": {
            "minimum": 5,
            "settle_seconds": 0.0,
            "stage": {
                "corpus": "institution",
                "size": 64,
                "workers": 1,
                "shard_studies": 16,
                "split": {"test": 0.5, "validate": 0.1},
                "institution": {"name": "north"},
            },
        },
    },
    "base": {"toy": {"hidden_size": 32, "vision_hidden_size": 32, "image_size": 64, "vocabulary": 300}},
    "sft": {"max_steps": 1, "batch_size": 4, "micro_batch": 4, "learning_rate": 0.001},
    "weights": {"scorers": []},
    "serve": {"model_name": "unirg", "cluster": CLUSTER},
    "production": {"model_name": "unirg", "cluster": CLUSTER | {"service": SERVICE}},
    "score": {"splits": ["test"], "patience_s": 20.0},
    "evaluate": {
        "scores": ["bleu2", "rouge_l"],
        "judge_model": "offline-judge",
        "condition_labeller": "lexicon",
        "resamples": 500,
    },
    "report": {},
    "gate": {
        "metric": "bleu2",
        "alarms": [],
        "allow_toy": True,
        "looks": 5,
        "min_studies": 20,
        "min_patients": 10,
        "resamples": 2000,
        "guards": {"metrics": ["bleu2"], "min_studies": 10, "min_patients": 10},
    },
    "promote": {"trial": {"requests": 6, "seconds": 0.0, "max_error_rate": 0.0}},
}
Quality = Callable[[Study], float]
"""The share of the reports that a model writes as the radiologist did; of the rest it says another's."""


def even(share: float) -> Quality:
    return lambda study: share


def worse_for_the_old(share: float) -> Quality:
    return lambda study: 0.0 if 65 <= (study.age or 0) < 80 else share


@dataclass
class Wards:
    """vLLM: any model's name answers, with the quality that was decided for it."""

    store: str
    next: Quality = field(default_factory=lambda: even(0.1))
    """Of models that have not been asked yet."""
    broken: bool = False
    """Whether every pod of the production service answers 500: it has no room for the model, say."""
    models: dict[str, Quality] = field(default_factory=dict)
    _studies: dict[str, Study] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, host: str, _: str, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.broken and host.startswith(f"{SERVICE}-"):
            return 500, {"error": {"code": 500}}
        with self._lock:
            quality = self.models.setdefault(asked["model"], self.next)
            study = self._study(asked)
        chance = int(hashlib.sha256(study.study_id.encode()).hexdigest()[:8], 16) / 2**32
        return said(prompts.report(study) if chance < quality(study) else "Findings: A pacemaker is seen.")

    def _study(self, asked: dict[str, Any]) -> Study:
        images = [part for part in asked["messages"][-1]["content"] if part["type"] == "image_url"]
        data = base64.b64decode(images[-1]["image_url"]["url"].partition(",")[2])
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._studies:
            for cohort in artifacts(self.store, "cohort"):
                opened = Cohort.open(cohort)
                for bare in opened.studies():
                    (image,) = prompts.images(opened.with_images(bare.study_id))
                    self._studies[hashlib.sha256(image or b"").hexdigest()] = bare
        return self._studies[digest]


@dataclass
class Hospital:
    """What a pipeline run needs to know; the servers run elsewhere."""

    folder: Path
    tracking_uri: str
    judge_url: str

    @property
    def store(self) -> str:
        return str(self.folder / "store")

    @property
    def site(self) -> Site:
        return Site(str(self.folder / "incoming"))

    @property
    def registry(self) -> Registry:
        return Registry(self.tracking_uri)

    def recipe(self, name: str) -> str:
        return str(self.folder / "recipes" / f"{name}.yaml")

    @property
    def production(self) -> Production:
        """With the champion's cohort."""
        cohorts = artifacts(self.store, "cohort")
        serving = config.load(ServeConfig, self.recipe("production"))
        return Production(serving, config.load(ScoreConfig, self.recipe("score")), cohorts[0], self.store)

    def prepare(self, exams: Sequence[Exam]) -> None:
        """Write the recipes, and make a first cohort and a champion of it, which a person approves."""
        (self.folder / "recipes").mkdir(parents=True)
        (self.folder / "incoming").mkdir()
        for name, content in RECIPES.items():
            if name == "weights":
                (self.folder / "none").mkdir()
                content = content | {"source": str(self.folder / "none")}
            Path(self.recipe(name)).write_text(yaml.safe_dump(content))
        self.site.deliver("d0", exams)
        settings = config.load(RetrainConfig, self.recipe("retrain"), self.overrides())
        cohort = grow(watch(settings.watch, None, self.store), self.store)
        base = train("base", self.recipe("base"), (), cohort.uri, "", self.store)
        version = self.registry.register(base)
        self.registry.approve(version.number, "Ada", "the first one")
        decided = Decided(False, None, "the first", "the first one", "Ada")
        rules = config.load(PromoteConfig, self.recipe("promote"))
        assert promote(rules, self.registry, version, decided, self.production).outcome == "promoted"

    def overrides(self) -> list[str]:
        return [f"watch.stage.data={self.site.place}"]

    def run(self, run: str) -> End | None:
        """Run the pipeline in this process; how the last cycle ended."""
        from kfp import local

        from pipelines.retrain import retrain

        with _in_process():
            local.init(
                local.SubprocessRunner(use_venv=False),
                pipeline_root=str(self.folder / "kfp"),
                raise_on_error=True,
            )
            recipes = str(self.folder / "recipes")
            retrain(
                store=self.store,
                tracking_uri=self.tracking_uri,
                recipe=recipes,
                overrides=self.overrides(),
                judge_url=self.judge_url,
                serving=self.recipe("production"),
                serving_overrides=[],
                run=run,
            )
        last = Cycles(self.store).last()
        return last.ended() if last else None

    # What there is to see

    def champion(self) -> int:
        """The version that registry and alias agree on."""
        found = self.registry.champion()
        assert found is not None
        assert self.registry.alias() == found.number
        return found.number

    def anchored(self) -> list[audit.Problem]:
        return audit.verify(self.store, audit.anchors(self.store, self.tracking_uri))

    def actions(self) -> list[str]:
        return [entry.action for entry in journal.read(self.store)]


@contextmanager
def hospital(
    folder: Path, tracking_uri: str, kubeconfig: Callable[[Path], None]
) -> Iterator[tuple[Hospital, Wards, KServe]]:
    """One with its servers, before anything is delivered.

    Args:
        kubeconfig: is told the file that leads to the cluster.
    """
    wards = Wards(str(folder / "store"))
    judge = [sys.executable, "-m", "unirg.metrics.offline_judge", "--port", "0"]
    with (
        Server().running() as server,
        chats(wards.answer) as url,
        processes.server(judge, "the judge") as judge_url,
    ):
        config_file = server.kubeconfig(folder / "kubeconfig")
        kubeconfig(config_file)
        kserve = KServe(config_file)
        kserve.domain = f"svc.cluster.local:{url.rpartition(':')[2]}"
        with kserve.at_work():
            made = Hospital(folder, tracking_uri, judge_url)
            with inside():
                yield made, wards, kserve


def served(kserve: KServe) -> str:
    """Digest of the model that everybody gets from the production service; fails while another is tried."""
    thing = kserve.get(SERVICE)
    assert isvc.tried(thing) is None
    return str(thing["spec"]["predictor"]["annotations"][isvc.DIGEST])


@contextmanager
def _in_process() -> Iterator[None]:
    """KFP's subprocesses as calls: a new Python would import for ten seconds before each task's work."""
    from kfp.dsl import executor_main
    from kfp.local import subprocess_task_handler

    failed: list[BaseException] = []

    def run(full_command: list[str], env_vars: object = None) -> int:
        at = next(number for number, word in enumerate(full_command) if "ephemeral_component" in word)
        source, arguments = full_command[at + 1], full_command[at + 2 :]
        with tempfile.TemporaryDirectory() as place:
            module = Path(place, "ephemeral_component.py")
            module.write_text(source)
            argv = ["executor", "--component_module_path", str(module), *arguments]
            try:
                with mock.patch.object(sys, "argv", argv):
                    executor_main.executor_main()
            except BaseException as error:
                failed.append(error)
                return 1
        return 0

    with mock.patch.object(subprocess_task_handler, "run_local_subprocess", run):
        try:
            yield
        except RuntimeError:
            if failed:
                raise failed[-1] from None
            raise
