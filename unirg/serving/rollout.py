"""A model's life in an InferenceService: begun, tried beside another, promoted, taken back, deleted.

Every change reads the service, decides by what it holds, and is put with the version that was read: what
somebody else has changed meanwhile is decided anew, and a call whose answer was lost finds itself done. The
service alone says what is stable, tried and previous, so any machine may go on where another stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from unirg import artifact, checkpoint, cluster, journal
from unirg.artifact import Artifact, ArtifactError
from unirg.cluster import Cluster, ClusterError, Conflict
from unirg.errors import UserError
from unirg.objects import OURS, POD, Object, uid
from unirg.serving import inference_service as isvc
from unirg.serving.inference_service import INFERENCE_SERVICE, PREVIOUS, SLOTS, Served, artifact_of
from unirg.storage import sha256
from unirg.telemetry import InternalError, to_stderr

Role = Literal["stable", "canary", ""]
POLL_S = 5.0
"""Between two looks at a service that is not ready; its pods change without it."""


class NotReady(InternalError):
    """A service did not become ready in time; it goes on trying."""


class CannotServe(UserError):
    """A model does not load, or its settings are refused: waiting does not help."""


def name_of(uri: str) -> str:
    """The name of a service that has none of its own: the same for the same `serve` artifact."""
    return f"unirg-{sha256(uri.encode())[:16]}"


def storage_uri(model: Artifact) -> str:
    """Where KServe finds a checkpoint's model directory.

    Raises:
        ArtifactError: it holds no model, or lies where a cluster cannot read it.
    """
    if f"{checkpoint.MODEL}/config.json" not in model.manifest.files:
        raise ArtifactError(f"{model.uri} holds no model directory: make the checkpoint again")
    if not model.uri.startswith("s3://"):
        raise ArtifactError(
            f"{model.uri} is on this machine, where a cluster cannot read it: train into a store on s3://"
        )
    return model.uri_of(checkpoint.MODEL)


@dataclass(frozen=True)
class InferenceServiceEndpoint:
    """A model that a cluster serves. `connect` finds it there or starts it, and leaves it there."""

    served: Served
    checkpoint_uri: str
    where: Cluster | None = None
    """None: the cluster that the configuration names."""
    tell: Callable[[str], None] = to_stderr
    restarts: ClassVar[bool] = False
    """KServe starts again what dies."""

    @property
    def model_name(self) -> str:
        return self.served.model_name

    @property
    def model_digest(self) -> str:
        return self.served.model_digest

    @contextmanager
    def connect(self) -> Iterator[str]:
        """The base URL of this model alone, once it is ready.

        Raises:
            UserError: the service has another model, cannot be made, or the model does not load.
            NotReady: it is not ready in time.
        """
        found = self._find()
        if found is None:
            found = self.begin()
        if not self._role(found):
            raise UserError(
                f"{self._name} serves {self._holds(found)}, not {self.served.uri}: roll this one out with "
                "`unirg serve`, or give it a service of its own"
            )
        if self.served.config.reach == "gateway" and isvc.tried(found):
            raise UserError(
                f"{self._name} has a canary, and its gateway splits requests between two models: set "
                "cluster.reach=service to ask one of them, inside the cluster"
            )
        yield self.wait()

    def begin(self, percent: int | None = None) -> Object:
        """Make or change the service so that it has this model; the service, which need not be ready.

        Args:
            percent: of requests, to be tried with beside the stable model; None: it is to be the stable one.

        Raises:
            UserError: the service is not ours, or something else is to be decided first.
        """

        def change(found: Object | None) -> Object | None:
            if percent is not None:
                return self._with_canary(found, percent)
            return self._with_stable(found)

        return self._put(change)

    def _with_stable(self, found: Object | None) -> Object:
        if found is None:
            self.tell(f"{self._name}: starting {self.served.model_name}")
            return isvc.service(self.served.service, self._predictor(SLOTS[0]))
        role = self._role(found)
        if role == "canary":
            raise UserError(f"{self._name} tries this model as a canary: promote it, or roll it back")
        stable = found["spec"]["predictor"]
        wanted = self._predictor(stable["name"])
        if role == "stable":
            return isvc.with_stable(found, wanted)
        self._no_other_canary(found)
        self.tell(f"{self._name}: {self.served.model_name} takes the place of {self._holds(found)}")
        wanted = _remembering(isvc.with_stable(found, wanted), stable)
        return isvc.changed(wanted, "promote", self.served, stable)

    def _with_canary(self, found: Object | None, percent: int) -> Object:
        if found is None:
            raise UserError(
                f"{self._name} does not exist, so there is nothing to try beside: leave out --canary"
            )
        role = self._role(found)
        if role == "stable":
            raise UserError(f"{self._name} serves this model to everybody already: there is nothing to try")
        if role != "canary":
            self._no_other_canary(found)
        free = next(one for one in SLOTS if one != found["spec"]["predictor"]["name"])
        self.tell(f"{self._name}: {self.served.model_name} is tried with {percent}% of the requests")
        entry = isvc.canary(self._predictor(free), percent)
        return found | {"spec": found["spec"] | {"canary": [entry]}}

    def role(self) -> Role | None:
        """What this model is in the service; empty: nothing; None: there is no service.

        Raises:
            UserError: the service is not ours.
        """
        found = self._find()
        return None if found is None else self._role(found)

    def promote(self) -> None:
        """Make the canary the stable model. Its pods go on as they are.

        Raises:
            UserError: it is not tried there.
        """

        def change(found: Object | None) -> Object | None:
            role = self._role(found) if found else ""
            if role == "stable":
                return None
            if found is None or role != "canary":
                raise UserError(f"{self._name} does not try {self.served.uri}: `unirg serve --canary` first")
            stable, canary = found["spec"]["predictor"], isvc.tried(found)
            assert canary is not None
            wanted = isvc.with_stable(_without_canary(found), self._predictor(canary["name"]))
            return isvc.changed(_remembering(wanted, stable), "promote", self.served, stable)

        self._put(change)
        self.tell(f"{self._name}: {self.served.model_name} is the stable model")

    def roll_back(self, only_canary: bool = False) -> None:
        """Take this model out: as a canary, or as the stable model, in whose place the previous one returns.

        Args:
            only_canary: a stable model stays.

        Raises:
            UserError: there is no model before it.
        """

        def change(found: Object | None) -> Object | None:
            role = self._role(found) if found else ""
            if found is None or not role or (only_canary and role != "canary"):
                return None
            if role == "canary":
                return isvc.changed(_without_canary(found), "rollback", self.served, None)
            self._no_other_canary(found)
            before = isvc.previous(found)
            if before is None:
                raise UserError(f"{self._name} had no model before this one: delete the endpoint instead")
            # In the slot of the one that fails, so that its pods are replaced one by one.
            returning = isvc.moved(before, self.served.service, found["spec"]["predictor"]["name"])
            wanted = _remembering(isvc.with_stable(found, returning), None)
            return isvc.changed(wanted, "rollback", self.served, before)

        self._put(change)
        self.tell(f"{self._name}: {self.served.model_name} is taken back")

    def delete(self) -> None:
        """Take this model down, and with the stable one its service. What is not there is deleted.

        Raises:
            UserError: the service is not ours, or tries another model.
        """
        while found := self._find():
            self._record(found)
            role = self._role(found)
            if not role:
                self.tell(f"{self._name} serves {self._holds(found)}, not this model: left as it is")
                return
            if role == "canary":
                self.roll_back()
                return
            self._no_other_canary(found)
            self._cluster.delete(INFERENCE_SERVICE, found)
            self.tell(f"{self._name}: deleted")

    def stop(self) -> None:
        """What the end of a pipeline does with it: delete it, unless others use it."""
        if self.served.config.keep:
            self.tell(f"{self._name} is kept (cluster.keep)")
        else:
            self.delete()

    def status(self) -> str:
        """A line on how far this model is.

        Raises:
            UserError: the service is not there, or has another model.
        """
        found = self._find()
        role = self._role(found) if found else ""
        if found is None or not role:
            raise UserError(f"{self._name} does not serve {self.served.uri}: `unirg serve` starts it")
        seen = self._state(found, role)
        share = ""
        if role == "canary":
            share = f" with {found['spec']['canary'][0]['trafficPercent']}% of the requests"
        return f"{self._name}: {self.served.model_name} is {role}{share}; {seen.told} {seen.url}".rstrip()

    def wait(self) -> str:
        """The base URL, once the model is ready.

        Raises:
            CannotServe: it does not load.
            UserError: it was deleted or taken out.
            NotReady: it is not ready in time.
        """
        until, told = time.monotonic() + self.served.config.ready_timeout_s, ""
        while True:
            found = self._find()
            role = self._role(found) if found else ""
            if found is None or not role:
                raise UserError(f"{self._name}: {self.served.model_name} was taken out before it was ready")
            seen = self._state(found, role)
            if seen.url:
                return seen.url
            pods = f"kubectl logs -n {self._cluster.namespace} -l serving.kserve.io/inferenceservice="
            if seen.failed:
                raise CannotServe(
                    f"{self._name} cannot serve {self.served.model_name} ({seen.told}): `{pods}"
                    f"{self.served.service} --all-containers` says more; put it right and serve it again"
                )
            if seen.told != told:
                told = seen.told
                self.tell(f"{self._name}: not ready: {told}")
            if time.monotonic() > until:
                raise NotReady(
                    f"{self._name} was not ready after {self.served.config.ready_timeout_s:g} s ({told}): it "
                    "goes on trying; run the same command again, or raise cluster.ready_timeout_s"
                )
            time.sleep(POLL_S)

    def _state(self, found: Object, role: Role) -> isvc.State:
        slot = found["spec"]["predictor"]["name"]
        if role == "canary":
            slot = (isvc.tried(found) or {})["name"]
        pods: list[Object] = []
        with suppress(ClusterError):  # who may not see pods is told what KServe says
            pods = self._cluster.list(POD, {"serving.kserve.io/inferenceservice": self.served.service})
        return isvc.state(found, slot, role == "canary", self.served, pods)

    @cached_property
    def _cluster(self) -> Cluster:
        return self.where or cluster.connect(self.served.config.namespace, self.served.config.context)

    @property
    def _name(self) -> str:
        return f"InferenceService {self.served.service} in namespace {self._cluster.namespace}"

    def _predictor(self, slot: str) -> Object:
        return isvc.predictor(self.served, self._storage_uri, slot, self._cluster.namespace)

    @cached_property
    def _storage_uri(self) -> str:
        # Whatever is at the URI now is what KServe loads.
        model = artifact.open_artifact(self.checkpoint_uri, checkpoint.STAGES)
        if model.digest != self.served.model_digest:
            raise ArtifactError(f"{model.uri} is another model than this endpoint's: serve it again")
        return storage_uri(model)

    def _find(self) -> Object | None:
        """The service, if it is there to stay.

        Raises:
            UserError: it was not made by us.
        """
        while True:
            found = self._cluster.get(INFERENCE_SERVICE, self.served.service)
            if found is None:
                return None
            if not (found["metadata"].get("labels") or {}).items() >= OURS.items():
                raise UserError(f"{self._name} was not made by unirg: choose another cluster.service")
            if "deletionTimestamp" not in found["metadata"]:
                return found
            self.tell(f"{self._name} is being deleted; waiting until it is gone")
            self._cluster.delete(INFERENCE_SERVICE, found)

    def _role(self, found: Object) -> Role:
        if artifact_of(found["spec"]["predictor"]) == self.served.uri:
            return "stable"
        return "canary" if artifact_of(isvc.tried(found) or {}) == self.served.uri else ""

    def _holds(self, found: Object) -> str:
        return artifact_of(found["spec"]["predictor"]) or "a model that is none of ours"

    def _no_other_canary(self, found: Object) -> None:
        other = isvc.tried(found)
        if other is not None:
            which = artifact_of(other) or "another model"
            raise UserError(f"{self._name} tries {which}: promote or roll back that one first")

    def _put(self, change: Callable[[Object | None], Object | None]) -> Object:
        """Put what `change` makes of the service; None leaves it. Decided anew where it has changed."""
        while True:
            found = self._find()
            if found:
                self._record(found)  # before the note of another change takes its place
            wanted = change(found)
            if wanted is None:
                return found or {}
            with suppress(Conflict):
                if found is None:
                    return self._cluster.create(INFERENCE_SERVICE, wanted)
                made = self._cluster.replace(INFERENCE_SERVICE, wanted)
                self._record(made)
                return made

    def _record(self, found: Object) -> None:
        """See to it that the audit has the service's last change, whoever made it and was killed since."""
        change = isvc.last_change(found)
        store = self.served.uri.rsplit("/", 2)[0]
        # What another store's endpoint did is for that store to tell; and nobody's note says where we write.
        if change is None or not change["endpoint"].startswith(f"{store}/"):
            return
        subjects = {"endpoint": change["endpoint"].removeprefix(f"{store}/"), "model": change["model"]}
        subjects |= {"other": change["other"], "service": f"{self._cluster.namespace}/{self.served.service}"}
        subjects |= {"uid": uid(found), "change": str(change["number"])}
        journal.append(store, change["action"], subjects)


def _without_canary(thing: Object) -> Object:
    return thing | {"spec": {name: value for name, value in thing["spec"].items() if name != "canary"}}


def _remembering(thing: Object, before: Object | None) -> Object:
    """A service that knows which predictor was stable before; None: none is."""
    kept = {name: value for name, value in thing["metadata"]["annotations"].items() if name != PREVIOUS}
    if before is not None:
        kept[PREVIOUS] = json.dumps(before, sort_keys=True)
    return thing | {"metadata": thing["metadata"] | {"annotations": kept}}
