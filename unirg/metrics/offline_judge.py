"""The offline judge: an OpenAI-compatible server that answers our questions by rules, with no model.

It stands in for a language model where none can be had: in the toy run and in tests. The clients are those
that speak to a real model; only the answering differs. For `chexprompt.Judge` it reads both reports with
`findings_lexicon` and compares them condition by condition (devices kind by kind) and side by side
(`count_errors` states the rules); for `temporal.Labeller` it reads the changes that a report states
(`temporal_change`). Its numbers measure agreement of extracted findings: show them as "offline judge", never
as CheXprompt's.

    python -m unirg.metrics.offline_judge --port 0 --ready-file judge.url
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count, product
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from unirg.errors import UserError
from unirg.metrics.chexprompt import CATEGORIES, Count, Errors
from unirg.metrics.findings_lexicon import Finding, extract
from unirg.metrics.findings_terms import LUNG_OPACITY, NO_FINDING
from unirg.metrics.temporal import SCHEMA as TEMPORAL
from unirg.metrics.temporal import Answer, Change
from unirg.processes import die_with_parent

MODEL = "offline-judge"

_RANK = {"mild": 1, "moderate": 2, "severe": 3}
_OPACITIES = {"Consolidation", "Pneumonia", "Atelectasis", "Lung Lesion", "Edema"}
"""What CheXpert's hierarchy of conditions has below Lung Opacity."""


@dataclass
class _Place:
    """What a report says of one condition on one side."""

    certain: bool = False
    zones: set[str] = field(default_factory=set)
    severities: set[str] = field(default_factory=set)
    changes: set[str] = field(default_factory=set)

    def add(self, finding: Finding) -> None:
        self.certain |= finding.presence != "uncertain"
        if finding.zone:
            self.zones.add(finding.zone)
        if finding.severity:
            self.severities.add(finding.severity)
        if finding.change:
            self.changes.add(finding.change)


Places = dict[str | None, _Place]
"""By side: left, right, or None where the report gives no side at all."""


class Topic(NamedTuple):
    """What errors are counted by; `gone` is the statement that the condition has resolved."""

    condition: str
    kind: str | None
    gone: bool


def _topics(findings: Iterable[Finding]) -> dict[Topic, Places]:
    """What a report asserts, by topic and side. A denial asserts nothing, unless that something has gone."""
    by_topic: dict[Topic, list[Finding]] = defaultdict(list)
    for finding in findings:
        gone = finding.presence == "negative"
        if not gone or finding.change == "resolved":
            by_topic[Topic(finding.condition, finding.kind, gone)].append(finding)
    topics: dict[Topic, Places] = {}
    for topic, stated in by_topic.items():
        sides = {side for finding in stated for side in _sides(finding)} - {None} or {None}
        places: Places = {side: _Place() for side in sides}
        for finding in stated:  # a statement without a side speaks of every side that another one names
            for side in sides if finding.side is None else _sides(finding):
                places[side].add(finding)
        topics[topic] = places
    return topics


def _sides(finding: Finding) -> tuple[str | None, ...]:
    return ("left", "right") if finding.side == "bilateral" else (finding.side,)


def count_errors(candidate: str, reference: str) -> Errors:
    """Compare two reports by topic: a condition, a kind of device. Each counts once in a category.

    - false_finding, omission: a topic, or one of its sides, that only one report asserts. Significant,
      unless it is asserted as uncertain only. Lung Opacity is no error where the other report names a
      condition that is one. A candidate that states nothing at all, against a reference that says
      something, is at least one omission.
    - wrong_location: the sides differ (significant); the zones differ, or the candidate leaves out a side
      or zone that the reference gives (insignificant). A side that only the candidate gives is no error.
    - wrong_severity: two steps apart (mild to severe) is significant; one step, or left out, is not.
    - false_comparison: a change that the reference does not state. Significant, but for an "unchanged"
      where the reference compares nothing.
    - omitted_comparison: the reference states a change and the candidate none. Significant, but for
      "unchanged". That something has gone is a comparison too, in both categories.
    """
    stated, expected = extract(candidate), extract(reference)
    comparison = _Comparison(_topics(stated), _topics(expected))
    for topic in comparison.ours.keys() | comparison.theirs.keys():
        comparison.count(topic)
    blank = bool(reference.strip()) and not candidate.strip()
    if not comparison.omits and not stated and (expected or blank):
        comparison.add("omission", Topic(NO_FINDING, None, False), True)
    return comparison.errors()


class _Comparison:
    """The candidate's topics against the reference's, and the errors found so far."""

    def __init__(self, ours: dict[Topic, Places], theirs: dict[Topic, Places]) -> None:
        self.ours, self.theirs = ours, theirs
        self._significant: dict[tuple[str, Topic], bool] = {}

    def add(self, category: str, topic: Topic, significant: bool) -> None:
        """A topic counts once in a category: as significant if any part of it is."""
        known = self._significant.get((category, topic), False)
        self._significant[category, topic] = known or significant

    @property
    def omits(self) -> bool:
        return any(category == "omission" for category, _ in self._significant)

    def errors(self) -> Errors:
        counts = {category: [0, 0] for category in CATEGORIES}
        for (category, _), significant in self._significant.items():
            counts[category][0 if significant else 1] += 1
        return Errors(**{c: Count(significant=s, insignificant=i) for c, (s, i) in counts.items()})

    def count(self, topic: Topic) -> None:
        ours, theirs = self.ours.get(topic, {}), self.theirs.get(topic, {})
        if topic.condition == NO_FINDING:
            # To call a study normal asserts no finding, so only what it compares counts.
            self._attributes(topic, ours.get(None, _Place()), theirs.get(None, _Place()))
            return
        if ours and theirs and (None in ours or None in theirs):
            if None in ours and None not in theirs:
                self.add("wrong_location", topic, False)
            pairs = list(product(ours.values(), theirs.values()))
        else:
            extra, missing = ours.keys() - theirs.keys(), theirs.keys() - ours.keys()
            pairs = [(ours[side], theirs[side]) for side in ours.keys() & theirs.keys()]
            if extra and missing:  # left for right
                self.add("wrong_location", topic, True)
                pairs += [(ours[mine], theirs[yours]) for mine in extra for yours in missing]
            elif extra:
                self._alone(topic, {side: ours[side] for side in extra}, self.theirs, "false")
            elif missing:
                self._alone(topic, {side: theirs[side] for side in missing}, self.ours, "omitted")
        for mine, yours in pairs:
            self._attributes(topic, mine, yours)

    def _alone(self, topic: Topic, places: Places, other: dict[Topic, Places], which: str) -> None:
        """Places that one report alone asserts."""
        if topic.gone:
            # Where the other report has it present, that it is missing there is already an error.
            if not _meet(places, other.get(topic._replace(gone=False), {})):
                self.add(f"{which}_comparison", topic, True)
        elif topic.condition != LUNG_OPACITY or not any(
            t.condition in _OPACITIES and not t.gone for t in other
        ):
            certain = any(place.certain for place in places.values())
            self.add("false_finding" if which == "false" else "omission", topic, certain)

    def _attributes(self, topic: Topic, ours: _Place, theirs: _Place) -> None:
        if theirs.zones and ours.zones != theirs.zones:
            self.add("wrong_location", topic, False)
        if theirs.severities and ours.severities != theirs.severities:
            steps = [abs(_RANK[a] - _RANK[b]) for a in ours.severities for b in theirs.severities]
            self.add("wrong_severity", topic, max(steps, default=0) > 1)
        if ours.changes - theirs.changes:
            self.add("false_comparison", topic, bool(theirs.changes) or ours.changes != {"unchanged"})
        elif theirs.changes and not ours.changes:
            self.add("omitted_comparison", topic, theirs.changes != {"unchanged"})


def _meet(some: Places, others: Places) -> bool:
    """Whether two sets of sides have one in common; an open side meets every side."""
    if not some or not others:
        return False
    return None in some or None in others or bool(some.keys() & others.keys())


def temporal_change(report: str) -> Change:
    """What a report says has happened to disease since the earlier study: the worst of the changes stated."""
    changes = {finding.change for finding in extract(report) if finding.condition != "Support Devices"}
    if "new" in changes:
        return "new_development"
    if "increased" in changes:
        return "progression"
    return "regression" if changes & {"decreased", "resolved"} else "no_change"


def _answer(body: Any) -> str:
    """The JSON that a question gets, by the name of the schema that it asks for.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, StopIteration: no client of ours asks like this.
    """
    data = json.loads(next(m["content"] for m in reversed(body["messages"]) if m["role"] == "user"))
    form = body.get("response_format") or {}
    if form.get("json_schema", {}).get("name") == TEMPORAL:
        return Answer(category=temporal_change(str(data["report"]))).model_dump_json()
    return count_errors(str(data["candidate"]), str(data["reference"])).model_dump_json()


def application() -> FastAPI:
    """The endpoints of OpenAI's protocol that our clients and a readiness probe need."""
    app = FastAPI(title=MODEL, docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, object]:
        return {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "unirg"}]}

    @app.post("/v1/chat/completions")
    async def completions(request: Request) -> JSONResponse:
        try:
            body = json.loads(await request.body())
            answer = _answer(body)
        except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
            return _refusal(400, "the user message must be the JSON object that our clients send")
        if body.get("model") != MODEL:
            return _refusal(404, f"the only model here is {MODEL}")
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": answer},
        }
        return JSONResponse(
            {
                "id": f"chatcmpl-{next(serial)}",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": MODEL,
                "choices": [choice],
            }
        )

    serial = count(1)

    def _refusal(status: int, message: str) -> JSONResponse:
        return JSONResponse({"error": {"message": message, "type": "invalid_request_error"}}, status)

    return app


def serve(port: int, ready_file: Path | None) -> None:
    """Serve on loopback until SIGTERM or SIGINT; `ready_file` holds the base URL while it listens.

    Raises:
        UserError: the port is in use or not allowed.
    """
    try:
        listener = socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise UserError(f"port {port} cannot be used ({error.strerror}): choose another, or 0") from None
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if ready_file is not None:
                partial = ready_file.with_name(f"{ready_file.name}.{os.getpid()}")
                partial.write_text(url)
                partial.replace(ready_file)

    config = uvicorn.Config(application(), log_level="warning", access_log=False, lifespan="off")
    try:
        Server(config).run([listener])
    finally:
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m unirg.metrics.offline_judge", description=MODEL)
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    parser.add_argument("--ready-file", type=Path, help="gets the base URL once the server listens")
    parser.add_argument("--die-with-parent", type=int, metavar="PID", help="end when this parent ends")
    options = parser.parse_args()
    # uvicorn raises the signal again after a clean stop: make that a normal exit.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    if options.die_with_parent is not None:
        die_with_parent(signal.SIGTERM, options.die_with_parent)
    try:
        serve(options.port, options.ready_file)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
