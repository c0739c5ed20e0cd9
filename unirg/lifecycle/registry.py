"""The model registry: one registered model a platform, a version for each checkpoint, and who is champion.

MLflow's alias `champion` can be moved by anybody at any time, so it alone cannot say "only if it still stands
there". MLflow does number a model's versions one after the other, in the database, whoever writes. So a
second registered model, `<name>-champions`, is a log: a promotion is a version of it, with what it expected,
and it counts where that was champion at its place in the log. Every reader finds the same champion in it, at
SQLite, PostgreSQL and an MLflow server on a database alike, and a process that is killed leaves either no
promotion or a whole one. The alias follows the log, for MLflow's UI and for others.

Of two writers that register one checkpoint, its lowest version counts; at SQLite and PostgreSQL there is no
other, at an MLflow server a killed writer may leave one behind that nothing here lists, and a writer may fail
as another writes, which nobody's promotion depends on: repeated, it finds what happened. Decisions of two
persons in the same moment are both kept at SQLite and PostgreSQL; at an MLflow server one may replace the
other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from unirg import journal, storage
from unirg.artifact import Artifact
from unirg.checkpoint import STAGES
from unirg.errors import UserError
from unirg.lifecycle.database import in_database, opened, shown
from unirg.lifecycle.store import Recorded

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION = "champion"
DECISIONS = "decisions"
LONGEST_REASON = journal.LONGEST
_PAGE = 1000
_OWN = ("digest", "uri", "stage", "action_key")
_ENTRY = {"version", "expected", "key", "who", "why"}
_NAME = re.compile(r"[\w.-]{1,100}")


class Outdated(UserError):
    """Another version is champion than the caller expected; nothing was changed."""


@dataclass(frozen=True)
class Decision:
    """What a person said of a version."""

    decision: Literal["approve", "refuse"]
    who: str
    why: str
    time: str
    """UTC, ISO 8601."""


@dataclass(frozen=True)
class Version:
    """A checkpoint in the registry."""

    number: int
    uri: str
    digest: str
    registered: datetime
    """UTC."""
    tags: Mapping[str, str]

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """The earliest first."""
        return tuple(Decision(**one) for one in json.loads(self.tags.get(DECISIONS, "[]")))

    @property
    def decision(self) -> Decision | None:
        """The last one, which counts."""
        return self.decisions[-1] if self.decisions else None


@dataclass(frozen=True)
class Promotion:
    """A change of the champion."""

    number: int
    """Its place in the log; promotions that did not count leave gaps."""
    version: int
    previous: int | None
    who: str
    why: str
    key: str
    """What it was made for, such as a gate's verdict; empty for none."""
    time: datetime
    """UTC."""


@dataclass(frozen=True)
class Registry:
    """The versions of one registered model in a metrics store."""

    tracking_uri: str
    name: str = "unirg"

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UserError(f"{self.name!r} is no name of a registered model: use letters, digits and ._-")

    def register(
        self, checkpoint: Artifact, tags: Mapping[str, str] | None = None, run: Recorded | None = None
    ) -> Version:
        """The version of a checkpoint; the same one however often, and by how many, it is registered.

        Args:
            tags: for people and for the gate; of one name the first one stays.
            run: in the same metrics store, that MLflow's UI links to.

        Raises:
            UserError: it is no checkpoint, or lies where an MLflow server does not take it from; a tag has a
                name of the registry's own; or the store failed.
        """
        stage = checkpoint.manifest.stage
        if stage not in STAGES:
            raise UserError(f"{checkpoint.uri} was made by stage {stage}: name a {' or '.join(STAGES)}")
        if not in_database(self.tracking_uri) and storage.is_local(checkpoint.uri):
            raise UserError(
                f"{checkpoint.uri} lies on this machine, and no MLflow server takes it from there: use a "
                "store on s3://, or name the server's database"
            )
        if taken := sorted({*_OWN, DECISIONS} & set(tags or ())):
            raise UserError(f"the tag {taken[0]} is the registry's own: choose another name")
        own = (checkpoint.digest, checkpoint.uri, stage, checkpoint.manifest.action_key)
        labels = dict(zip(_OWN, own, strict=True)) | dict(tags or {})
        with opened(self.tracking_uri) as (client, _):
            found = self._of(client, checkpoint.digest)
            if found is None:
                _make(client, self.name)
                made = client.create_model_version(
                    self.name, checkpoint.uri, run.run_id if run else None, labels, await_creation_for=0
                )
                found = self._of(client, checkpoint.digest)
                assert found is not None
                if found.number != int(made.version):
                    client.delete_model_version(self.name, made.version)
            missing = {name: text for name, text in (tags or {}).items() if name not in found.tags}
            for name, text in missing.items():
                client.set_model_version_tag(self.name, str(found.number), name, text)
            return replace(found, tags={**found.tags, **missing})

    def versions(self) -> list[Version]:
        """Every version, the first registered first."""
        with opened(self.tracking_uri, existing=True) as (client, _):
            return self._versions(client)

    def version(self, number: int) -> Version:
        """Raises: UserError where there is no such version."""
        with opened(self.tracking_uri, existing=True) as (client, _):
            return self._version(client, number)

    def champion(self) -> Version | None:
        """The version that the log says; None before the first promotion.

        Raises:
            UserError: its version was deleted from the registry.
        """
        with opened(self.tracking_uri, existing=True) as (client, _):
            promotions = self._promotions(client)
            return self._version(client, promotions[-1].version) if promotions else None

    def alias(self) -> int | None:
        """The version that MLflow's alias is on: not the champion's only where somebody moved it by hand, or
        a process was killed before it moved it."""
        with opened(self.tracking_uri, existing=True) as (client, _):
            return self._alias(client)

    def history(self) -> list[Promotion]:
        """Every champion in turn, the first first."""
        with opened(self.tracking_uri, existing=True) as (client, _):
            return self._promotions(client)

    def set_champion(
        self, version: int, expected: int | None, who: str, why: str = "", key: str = ""
    ) -> Promotion:
        """Make a version champion if the expected one still is: compare and set.

        Args:
            expected: the champion that the decision rested on; None for none.
            key: what the promotion is made for; the same key again gives the promotion it made, whatever
                happened since, so that a process that was killed can repeat itself.

        Raises:
            Outdated: another version is champion.
            UserError: there is no such version, its last decision is `refuse`, or the store failed.
        """
        _said(who, why)
        with opened(self.tracking_uri) as (client, _):
            promotions = self._promotions(client)
            earlier = [one for one in promotions if key and one.key == key]
            if earlier:
                self._move_alias(client)
                return earlier[0]
            if version == expected:
                raise UserError(f"version {version} is to follow itself: name the champion that it replaces")
            wanted = self._version(client, version)
            if wanted.decision and wanted.decision.decision == "refuse":
                raise UserError(
                    f"version {version} was refused by {wanted.decision.who}: approve it first "
                    f"(`unirg registry approve {version}`), or promote another"
                )
            if (promotions[-1].version if promotions else None) != expected:
                raise _outdated(promotions, expected)
            tags = {"version": str(version), "expected": str(expected or ""), "key": key}
            tags |= {"who": who, "why": why}
            _make(client, self._log)
            entry = client.create_model_version(self._log, wanted.uri, tags=tags, await_creation_for=0)
            promotions = self._promotions(client)
            self._move_alias(client)
            for one in promotions:
                if one.number == int(entry.version) or (key and one.key == key):
                    return one
            raise _outdated(promotions, expected)  # through a server another came in between

    def approve(self, version: int, who: str, why: str = "") -> Version:
        """Note that a person approves a version.

        Raises:
            UserError: there is no such version, nobody says it, or the reason is too long.
        """
        return self._decide(version, "approve", who, why)

    def refuse(self, version: int, who: str, why: str) -> Version:
        """Note that a person refuses a version: `set_champion` takes it no more, until one approves it.

        Raises:
            UserError: there is no such version, nobody says it, or there is no reason or too long a one.
        """
        if not why.strip():
            raise UserError(f"version {version} is not refused: say why")
        return self._decide(version, "refuse", who, why)

    @property
    def _log(self) -> str:
        return f"{self.name}-champions"

    def _decide(self, number: int, decision: Literal["approve", "refuse"], who: str, why: str) -> Version:
        _said(who, why)
        said = {"decision": decision, "who": who, "why": why, "time": _now()}
        with opened(self.tracking_uri, existing=True) as (client, _):
            found = self._version(client, number)
            told = json.dumps([*json.loads(found.tags.get(DECISIONS, "[]")), said])
            client.set_model_version_tag(self.name, str(number), DECISIONS, told)
            return self._version(client, number)

    def _version(self, client: MlflowClient, number: int) -> Version:
        found = self._versions(client)
        for one in found:
            if one.number == number:
                return one
        known = ", ".join(str(one.number) for one in found[-20:]) or "none"
        place = shown(self.tracking_uri)
        raise UserError(f"model {self.name} at {place} has no version {number}: it has {known}")

    def _of(self, client: MlflowClient, digest: str) -> Version | None:
        return next((one for one in self._versions(client) if one.digest == digest), None)

    def _versions(self, client: MlflowClient) -> list[Version]:
        """By number; of one checkpoint the lowest, and none that somebody made without us."""
        found: dict[str, Version] = {}
        for each in _entries(client, self.name):
            tags = dict(each.tags)
            if "digest" in tags:
                made = datetime.fromtimestamp(each.creation_timestamp / 1000, UTC)
                version = Version(int(each.version), str(each.source), tags["digest"], made, tags)
                found.setdefault(version.digest, version)
        return list(found.values())

    def _promotions(self, client: MlflowClient) -> list[Promotion]:
        """The entries of the log that count."""
        found: list[Promotion] = []
        for each in _entries(client, self._log):
            tags = each.tags
            if not tags.keys() >= _ENTRY:
                continue  # made by hand
            previous = found[-1].version if found else None
            expected = int(tags["expected"]) if tags["expected"] else None
            again = any(tags["key"] and one.key == tags["key"] for one in found)
            if expected == previous and not again:
                when = datetime.fromtimestamp(each.creation_timestamp / 1000, UTC)
                said = (tags["who"], tags["why"], tags["key"])
                found.append(Promotion(int(each.version), int(tags["version"]), previous, *said, when))
        return found

    def _alias(self, client: MlflowClient) -> int | None:
        if not client.search_registered_models(f"name = '{self.name}'"):
            return None
        stands = client.get_registered_model(self.name).aliases.get(CHAMPION)
        return int(stands) if stands else None

    def _move_alias(self, client: MlflowClient) -> None:
        """To the champion of the log, and again where another promoted meanwhile."""
        while (champion := self._promotions(client)[-1].version) != self._alias(client):
            client.set_registered_model_alias(self.name, CHAMPION, str(champion))


def _outdated(promotions: list[Promotion], expected: int | None) -> Outdated:
    champion = promotions[-1].version if promotions else "none"
    return Outdated(
        f"version {champion} is champion, not {expected or 'none'} as expected: compare with it, then promote"
    )


def _entries(client: MlflowClient, name: str) -> list[Any]:
    """The versions of a registered model by number; none where there is no such model."""
    found, token = [], None
    while True:
        page = client.search_model_versions(
            f"name = '{name}'", max_results=_PAGE, order_by=["version_number ASC"], page_token=token
        )
        found += page
        token = page.token
        if not token:
            return found


def _make(client: MlflowClient, name: str) -> None:
    """Create a registered model if there is none."""
    from mlflow.exceptions import MlflowException

    if not client.search_registered_models(f"name = '{name}'"):
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # through a server another was first
                raise


def _said(who: str, why: str) -> None:
    if not who.strip():
        raise UserError("nobody says it: name who (UNIRG_ACTOR or --who)")
    if len(who) > LONGEST_REASON or len(why) > LONGEST_REASON:
        raise UserError(f"who has {len(who)} characters, why {len(why)}: at most {LONGEST_REASON} each")
    if not (who + why).isprintable():
        raise UserError("who and why are for the audit, too: write each in one line")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
