"""A KFP API server in this process (v2beta1): enough of one to be scheduled on, and to fail on purpose.

It speaks HTTP on loopback and stores pipelines, versions, experiments, runs and recurring runs as the real
one does: display names of pipelines, of their versions and of experiments are unique, those of runs and
recurring runs are not, and times are whole seconds. Nothing runs: a test says how a run goes on.
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Thing = dict[str, Any]
ROOT = "/apis/v2beta1/"
KINDS = {
    "pipelines": "pipeline_id",
    "versions": "pipeline_version_id",
    "experiments": "experiment_id",
    "runs": "run_id",
    "recurringruns": "recurring_run_id",
}
LISTS = {"versions": "pipeline_versions", "recurringruns": "recurringRuns"}
UNIQUE = {"pipelines", "versions", "experiments"}


class Refusal(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Api:
    """The server's state; `fail` and `hold` are for tests."""

    tokens: set[str] = field(default_factory=set)
    """Empty: nobody is asked for one."""
    things: dict[str, list[Thing]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    requests: list[str] = field(default_factory=list)
    """`METHOD path?query` of every request, in order."""
    most_enabled: int = 0
    """Recurring runs of one name that were enabled at the same time, at most."""
    page: int = 2
    """Things of one page, fewer than anybody asks for."""
    _faults: list[list[Any]] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    url: str = ""

    @contextmanager
    def running(self) -> Iterator[Api]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"api": self}))
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def fail(self, match: str, status: int, times: int = 1) -> None:
        """Let the next requests whose `METHOD path?query` has `match` in it fail.

        Args:
            status: 0: the connection breaks before the request is done; 1: after it.
        """
        self._faults.append([match, status, times])

    def fault(self, request: str) -> int | None:
        with self._lock:
            self.requests.append(request)
            for one in self._faults:
                if one[2] and one[0] in request:
                    one[2] -= 1
                    return int(one[1])
        return None

    def heal(self) -> None:
        """Nothing fails any more."""
        with self._lock:
            self._faults.clear()

    def fire(self, name: str) -> str:
        """Let the enabled recurring run of a name start a run, as its clock does; the run's id."""
        (one,) = (one for one in self.enabled() if one["display_name"] == name)
        inherited = ("experiment_id", "pipeline_version_reference", "runtime_config", "recurring_run_id")
        given = {part: one[part] for part in inherited} | {"display_name": f"Run of {name}"}
        return str(self.create("runs", given)["run_id"])

    def count(self, match: str) -> int:
        return sum(match in request for request in self.requests)

    def set_state(self, run_id: str, state: str) -> None:
        """Let a run go on."""
        with self._lock:
            (run,) = (one for one in self.things["runs"] if one["run_id"] == run_id)
            run["state"] = state

    def names(self, kind: str) -> list[str]:
        with self._lock:
            return [one["display_name"] for one in self.things[kind]]

    def enabled(self) -> list[Thing]:
        with self._lock:
            return [one for one in self.things["recurringruns"] if one["mode"] == "ENABLE"]

    def create(self, kind: str, given: Thing) -> Thing:
        with self._lock:
            name = given.get("display_name") or given.get("name")
            if not name:
                raise Refusal(400, "Invalid input error: a name is missing")
            alike = [one for one in self.things[kind] if one["display_name"] == name]
            if kind == "versions":
                alike = [one for one in alike if one["pipeline_id"] == given["pipeline_id"]]
            if kind in UNIQUE and alike:
                raise Refusal(409, f"Already exist error: the name {name} already exists")
            if kind in ("runs", "recurringruns"):
                self._refers(given)
            made = given | {"display_name": name, KINDS[kind]: str(uuid.uuid4())}
            made["created_at"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            if kind == "runs":
                made["state"] = "PENDING"
            self.things[kind].append(made)
            self._enabled_now()
            return made

    def _refers(self, given: Thing) -> None:
        """A run's references must lead somewhere."""
        if not any(one["experiment_id"] == given.get("experiment_id") for one in self.things["experiments"]):
            raise Refusal(404, "Experiment not found")
        wanted = given["pipeline_version_reference"]
        if not any(one.items() >= wanted.items() for one in self.things["versions"]):
            raise Refusal(404, "PipelineVersion not found")

    def _enabled_now(self) -> None:
        names = [one["display_name"] for one in self.enabled()]
        self.most_enabled = max([self.most_enabled, *(names.count(name) for name in names)])

    def find(self, kind: str, one_id: str) -> Thing:
        with self._lock:
            for one in self.things[kind]:
                if one[KINDS[kind]] == one_id:
                    return one
            raise Refusal(404, f"ResourceNotFoundError: {kind} {one_id} not found.")

    def select(self, kind: str, query: dict[str, str], **only: str) -> Thing:
        with self._lock:
            chosen = [one for one in self.things[kind] if only.items() <= one.items()]
            if "experiment_id" in query:
                chosen = [one for one in chosen if one["experiment_id"] == query["experiment_id"]]
            if "filter" in query:
                (predicate,) = json.loads(query["filter"])["predicates"]
                assert predicate["operation"] == 1
                assert predicate["key"] == "display_name"
                chosen = [one for one in chosen if one["display_name"] == predicate["stringValue"]]
            if query.get("sort_by") == "created_at desc":
                chosen = chosen[::-1]
            size = min(self.page, int(query.get("page_size", 10))) if kind != "runs" else len(chosen) or 1
            begin = int(query.get("page_token") or 0)
            rest = str(begin + size) if len(chosen) > begin + size else ""
            return {LISTS.get(kind, kind): chosen[begin : begin + size], "next_page_token": rest}

    def delete(self, one_id: str, policy: str) -> Thing:
        """Delete a recurring run, and but for the policy ORPHAN its runs, as Kubernetes does."""
        with self._lock:
            self.things["recurringruns"].remove(self.find("recurringruns", one_id))
            if policy != "ORPHAN":
                runs = self.things["runs"]
                self.things["runs"] = [run for run in runs if run.get("recurring_run_id") != one_id]
            return {}

    def set_mode(self, one_id: str, mode: str) -> Thing:
        with self._lock:
            self.find("recurringruns", one_id)["mode"] = mode
            self._enabled_now()
            return {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: Api

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_DELETE = do_GET

    def _answer(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.api.fault(f"{self.command} {self.path}")
        if fault == 0:
            self.close_connection = True
            return
        try:
            if self.api.tokens:
                scheme, _, token = (self.headers.get("Authorization") or "").partition(" ")
                if scheme != "Bearer" or token not in self.api.tokens:
                    raise Refusal(401, "Request header error: there is no user identity header.")
            if fault and fault > 1:
                raise Refusal(fault, "a fault that the test wants")
            status, given = 200, self._act(sent)
        except Refusal as refusal:
            status, given = refusal.status, {"message": str(refusal), "code": 3, "details": []}
        if fault == 1:
            self.close_connection = True
            return
        data = json.dumps(given).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _act(self, sent: bytes) -> Thing:
        parts = urlsplit(self.path)
        if not parts.path.startswith(ROOT):
            raise Refusal(404, "Not Found")
        query = dict(parse_qsl(parts.query))
        kind, *rest = parts.path.removeprefix(ROOT).split("/")
        if (self.command, kind, rest) == ("POST", "pipelines", ["upload_version"]):
            text = re.search(rb"\r\n\r\n(.*)\r\n--", sent, re.DOTALL)
            assert text is not None
            self.api.find("pipelines", query["pipelineid"])
            wanted = {"name": query["name"], "pipeline_id": query["pipelineid"]}
            return self.api.create("versions", wanted | {"description": text[1].decode()})
        if kind == "pipelines" and rest[1:] == ["versions"]:
            return self.api.select("versions", query, pipeline_id=rest[0])
        if kind not in KINDS:
            raise Refusal(404, "Not Found")
        if rest and self.command == "POST":
            one_id, _, verb = rest[0].partition(":")
            assert kind == "recurringruns"
            return self.api.set_mode(one_id, {"enable": "ENABLE", "disable": "DISABLE"}[verb])
        if self.command == "POST":
            return self.api.create(kind, json.loads(sent))
        if self.command == "DELETE":
            assert kind == "recurringruns"
            return self.api.delete(rest[0], query.get("propagation_policy", ""))
        return self.api.select(kind, query)
