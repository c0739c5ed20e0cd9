"""A place to promote at: a registry, KServe at work, vLLM for every model, and checkpoints to choose from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kubernetes import Server
from tests.lifecycle.stores import made
from tests.scoring.stub import Answer, Stub, completion, status
from tests.serving.kserve import KServe, inside
from unirg import journal
from unirg.artifact import Artifact
from unirg.lifecycle.promote import Decided, Production, PromoteConfig, Promoted, promote
from unirg.lifecycle.registry import Registry, Version
from unirg.lifecycle.trial import TrialConfig
from unirg.scoring.archive import ScoreConfig
from unirg.serving import inference_service as isvc
from unirg.serving.endpoint import ServeConfig
from unirg.serving.inference_service import InferenceServiceConfig

SERVICE = "cxr"
TRIAL = TrialConfig(requests=4, seconds=0.0, max_error_rate=0.0, timeout_s=5.0, splits=("test",))
SETTINGS = PromoteConfig(trial=TRIAL)


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


@dataclass
class World:
    """A registry and a service with the same models."""

    registry: Registry
    cohort: Artifact
    store: str
    kserve: KServe
    vllm: Stub
    broken: set[str] = field(default_factory=set)
    """Digests, 12 digits, of the models that answer 500."""

    def answer(self, request: dict[str, Any]) -> Answer:
        if request["model"].rpartition("-")[2] in self.broken:
            return status(500)
        found = completion(request)
        assert found
        return 200, {}, found[2]

    def version(self, name: str, tags: Mapping[str, str] | None = None) -> Version:
        """The version of a checkpoint of its own."""
        return self.registry.register(made(self.store, "sft", {"cohort": self.cohort}, name), tags)

    def breaks(self, version: Version) -> None:
        self.broken.add(version.digest[:12])

    def production(self, **settings: Any) -> Production:
        given: dict[str, Any] = {"service": SERVICE, "namespace": "unirg", "ready_timeout_s": 20.0} | settings
        serving = ServeConfig(cluster=InferenceServiceConfig(**given))
        return Production(serving, ScoreConfig(max_tokens=16), self.cohort, self.store)

    def promote(
        self,
        version: Version,
        *,
        key: str = "",
        passed: bool = True,
        expected: int | None = None,
        approval: bool = False,
        **settings: Any,
    ) -> Promoted:
        """Promote over the champion that is there now, or the expected one."""
        champion = self.registry.champion()
        over = expected or (champion.number if champion else None)
        decided = Decided(passed, over, key or f"cycle {version.number}", "gate 1234", "pipeline")
        config = SETTINGS.model_copy(update={"approval": approval})
        return promote(config, self.registry, version, decided, self.production(**settings))

    def champion(self) -> int | None:
        found = self.registry.champion()
        assert self.registry.alias() == (found.number if found else None)
        return found.number if found else None

    def served(self) -> tuple[str, str | None]:
        """Digests of what everybody gets and of what is tried."""
        thing = self.kserve.get(SERVICE)
        tried = isvc.tried(thing)
        stable = str(thing["spec"]["predictor"]["annotations"][isvc.DIGEST])
        return stable, str(tried["annotations"][isvc.DIGEST]) if tried else None

    def audit(self) -> list[tuple[str, str, str]]:
        """(action, version, who) of what was decided, in order, without the service's own changes."""
        decided = ("approve", "refuse", "promote", "rollback")
        return [
            (entry.action, entry.subjects["version"], entry.actor)
            for entry in journal.read(self.store)
            if entry.action in decided and "endpoint" not in entry.subjects
        ]

    def rolled_out(self) -> list[str]:
        """The service's own changes in the audit."""
        return [entry.action for entry in journal.read(self.store) if "endpoint" in entry.subjects]


@contextmanager
def world(folder: Path, tracking_uri: str, cohort: Artifact) -> Iterator[tuple[World, Path]]:
    """One with its servers, and the file that leads to the cluster."""
    vllm = Stub()
    with (
        Server().running() as server,
        vllm.running(),
        inside(),
    ):
        kubeconfig = server.kubeconfig(folder / "kubeconfig")
        kserve = KServe(kubeconfig)
        kserve.domain = f"svc.cluster.local:{vllm.port}"
        made = World(Registry(tracking_uri), cohort, str(folder / "store"), kserve, vllm)
        vllm.script = lambda _, request: made.answer(request)
        with kserve.at_work():
            yield made, kubeconfig
