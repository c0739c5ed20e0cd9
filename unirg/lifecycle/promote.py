"""A challenger becomes the champion, and the endpoint's model: tried, then promoted, then rolled out.

    canary beside the champion -> trial -> champion in the registry -> everybody's model

The registry is what counts, and its one change (`Registry.set_champion`, by a key) stands between the trial
and the roll-out: a model that fails the trial was never champion, and one that is champion is rolled out by
whoever goes on after a kill. Every step looks at what is there before it does anything, so the whole may be
repeated from any point. On a single machine there is no canary: a server of its own is tried, and whoever
serves the champion next serves it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from unirg import journal, telemetry
from unirg.artifact import Artifact, open_artifact
from unirg.checkpoint import STAGES
from unirg.config import Config
from unirg.errors import UserError
from unirg.lifecycle.registry import Outdated, Promotion, Registry, Version
from unirg.lifecycle.trial import Trial, TrialConfig, trial
from unirg.scoring.archive import ScoreConfig
from unirg.serving.endpoint import LocalEndpoint, ServeConfig, open_endpoint, serve
from unirg.serving.rollout import CannotServe, InferenceServiceEndpoint

VERDICT = "verdict"
"""Tag of a version: URI of the gate's verdict."""
ROLLBACK = "rollback of "
"""What the key of a champion's change begins with that a rollback made."""


class PromoteConfig(Config):
    """What a promotion needs."""

    approval: bool = False
    """Whether a person must approve a challenger that passed the gate (`unirg registry approve`)."""
    trial: TrialConfig = TrialConfig()
    """How it is tried before it is everybody's model."""


@dataclass(frozen=True)
class Production:
    """Where the champion is served, and with what it is tried."""

    serve: ServeConfig
    """Of one service for all champions: `cluster.service` has a name."""
    asking: ScoreConfig
    """How it is asked."""
    cohort: Artifact
    """Whose studies are asked about."""
    store: str

    def endpoint(self, model: Artifact) -> LocalEndpoint | InferenceServiceEndpoint:
        """The endpoint with this model.

        Raises:
            UserError: the service has no name, so that another champion would be served elsewhere; or it is
                asked through a gateway, which splits requests, so that a canary cannot be asked by itself.
        """
        if self.serve.cluster and not self.serve.cluster.service:
            raise UserError("cluster.service is empty: name the service that the champion is served by")
        if self.serve.cluster and self.serve.cluster.reach != "service":
            raise UserError(
                f"cluster.reach={self.serve.cluster.reach} splits requests between two models: promote "
                "inside the cluster, with cluster.reach=service"
            )
        return open_endpoint(serve(self.serve, model, self.store))


@dataclass(frozen=True)
class Decided:
    """What a promotion rests on."""

    passed: bool
    """Whether the gate let the version pass."""
    expected: int | None
    """The champion that it was compared with; None for none."""
    key: str
    """What it is promoted for, such as a cycle: with one key it is promoted once."""
    why: str
    """For the registry and the audit: a verdict's digest or a person's reason."""
    who: str = field(default_factory=journal.named_actor)


@dataclass(frozen=True)
class Promoted:
    """What came of it."""

    outcome: Literal["promoted", "rolled back", "waiting", "kept", "superseded"]
    why: str
    """For a person."""
    trial: Trial | None = field(default=None)
    """None where it was not tried, or was tried before a kill."""


@telemetry.verb("promote")
def promote(
    config: PromoteConfig, registry: Registry, version: Version, decided: Decided, production: Production
) -> Promoted:
    """Make a version the champion, once for each key, however often it is called.

    Raises:
        UserError: the endpoint or the store is not to be had; the same call goes on.
    """
    model = open_artifact(version.uri)
    if model.digest != version.digest:
        raise UserError(f"{version.uri} is another model than version {version.number}: restore it")
    endpoint = production.endpoint(model)
    record_decisions(production.store, registry, registry.version(version.number))
    tried = None
    if not _promoted(registry, decided):
        if refused := _refused(config, registry.version(version.number), decided.passed):
            _take_back(endpoint)  # who was killed in its trial left it there
            return refused
        tried = _tried(config.trial, endpoint, production)
        if not tried.passed and not _promoted(registry, decided):  # by another run, whose trial it passed
            _take_back(endpoint)
            told = {"model": version.digest, "version": str(version.number), "key": decided.key}
            journal.append(production.store, "rollback", told, "the trial failed", decided.who)
            return Promoted("rolled back", tried.why, tried)
    try:  # with a key that was used, this puts right what a killed process left of it
        made = registry.set_champion(version.number, decided.expected, decided.who, decided.why, decided.key)
    except UserError as error:  # a person refused it, or made another the champion
        outdated = isinstance(error, Outdated)
        if not outdated and not _refused(config, registry.version(version.number), decided.passed):
            raise
        _take_back(endpoint)
        return Promoted("superseded" if outdated else "kept", str(error), tried)
    record(production.store, registry, made)
    if registry.history()[-1].version != version.number:
        _take_back(endpoint)  # who was killed after the change left it there, and another came later
    finish(registry, production)
    if made.version != version.number:  # the same cycle with other recipes made another challenger
        return Promoted("superseded", f"version {made.version} was promoted for {decided.key} before", tried)
    return Promoted("promoted", tried.why if tried else "promoted before", tried)


def roll_back(registry: Registry, production: Production, why: str, who: str = "") -> Promotion:
    """Make the champion before this one the champion again, and what the endpoint serves.

    Where the last change was a rollback it is finished and none is made: the same command again, after a kill
    or a time-out, must not bring back the model that was rolled back.

    Raises:
        UserError: there is no champion before this one, somebody changes it meanwhile, or as `finish`.
    """
    history = registry.history()
    if not history or history[-1].previous is None:
        raise UserError(f"model {registry.name} had no champion before this one: promote another")
    made = history[-1]
    if not made.key.startswith(ROLLBACK):
        # Before anything is changed: a mistake in the settings shows here, and a missing model.
        production.endpoint(open_artifact(registry.version(history[-1].previous).uri))
        record(production.store, registry, made)
        key = f"{ROLLBACK}{made.number}"
        who = who or journal.named_actor()
        made = registry.set_champion(history[-1].previous, made.version, who, why, key)
    finish(registry, production)
    return made


def finish(registry: Registry, production: Production) -> None:
    """See to it that the champion is in the audit and everybody's model, whoever was killed before it was.

    Raises:
        UserError: there is no champion, the endpoint or the store is not to be had, or another model is tried
            there; the same call goes on.
    """
    while True:
        history = registry.history()
        if not history:
            raise UserError(f"model {registry.name} has no champion yet: promote one")
        last = history[-1]
        record(production.store, registry, last)
        if last.previous is not None and last.key.startswith(ROLLBACK):  # it may still be a canary
            _take_back(production.endpoint(open_artifact(registry.version(last.previous).uri)))
        _roll_out(production.endpoint(open_artifact(registry.version(last.version).uri)))
        if registry.history()[-1].number == last.number:  # else somebody changed it meanwhile
            return


def record(store: str, registry: Registry, made: Promotion) -> None:
    """See to it that the audit has a change of the champion."""
    version, back = registry.version(made.version), made.key.startswith(ROLLBACK)
    told = {"model": version.digest, "version": str(version.number), "registry": registry.name}
    told |= {"previous": str(made.previous or ""), "change": str(made.number), "key": made.key}
    journal.append(store, "rollback" if back else "promote", told, made.why, made.who)


def _promoted(registry: Registry, decided: Decided) -> bool:
    return any(one.key == decided.key for one in registry.history())


def cohort_of(version: Version) -> str:
    """URI of the cohort that a version was trained on last.

    Raises:
        UserError: it does not say.
    """
    used = open_artifact(version.uri, STAGES).manifest.inputs.get("cohort")
    if used is None or not used.uri:
        raise UserError(f"{version.uri} does not say what it was trained on: name --cohort")
    return used.uri


def record_decisions(store: str, registry: Registry, version: Version) -> None:
    """See to it that the audit has what persons said of a version, whoever was killed before it had."""
    for number, one in enumerate(version.decisions, 1):
        told = {"model": version.digest, "version": str(version.number), "registry": registry.name}
        journal.append(
            store, one.decision, told | {"decision": str(number), "said": one.time}, one.why, one.who
        )


def _refused(config: PromoteConfig, version: Version, passed: bool) -> Promoted | None:
    """Why this version may not become champion now; None where it may."""
    said = version.decision
    if said and said.decision == "refuse":
        return Promoted("kept", f"version {version.number} was refused by {said.who}")
    if said is None and not passed:
        return Promoted("kept", f"version {version.number} has not passed the gate, and nobody approved it")
    if said is None and config.approval:
        return Promoted(
            "waiting",
            f"version {version.number} waits for a person: `unirg registry approve {version.number}`, then "
            f"`unirg promote {version.number}`",
        )
    return None


def _tried(
    config: TrialConfig, endpoint: LocalEndpoint | InferenceServiceEndpoint, production: Production
) -> Trial:
    """Try it where users do not yet get all of their answers from it."""
    if isinstance(endpoint, LocalEndpoint):
        with endpoint.connect() as url:
            return trial(config, production.asking, production.cohort, endpoint, url)
    role = endpoint.role()
    if role is None:
        endpoint.begin()  # nobody is served yet
    elif role == "":
        endpoint.begin(config.percent)
    try:
        url = endpoint.wait()
    except CannotServe as error:
        return Trial(0, 0, False, str(error))
    return trial(config, production.asking, production.cohort, endpoint, url)


def _take_back(endpoint: LocalEndpoint | InferenceServiceEndpoint) -> None:
    """Out of the canary; what was everybody's model from the first has none to return to, and stays."""
    if isinstance(endpoint, InferenceServiceEndpoint) and endpoint.role() == "canary":
        endpoint.roll_back(only_canary=True)  # another may make it everybody's at this moment


def _roll_out(endpoint: LocalEndpoint | InferenceServiceEndpoint) -> None:
    if not isinstance(endpoint, InferenceServiceEndpoint):
        return
    if endpoint.role() == "canary":
        endpoint.promote()
    else:
        endpoint.begin()
    endpoint.wait()
