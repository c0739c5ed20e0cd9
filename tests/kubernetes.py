"""A Kubernetes API server in this process: enough of one to be launched against, and to fail on purpose.

It speaks HTTP on loopback, stores objects, holds custom resources to the schemas of the projects' own
definitions (`tests/crds.py`) and others to the models of `tests/core_kinds.py`, refuses stale updates and
serves watches, pods' logs and status subresources as the real one does. No controller runs: a test plays it,
through the API (`tests/controller.py`), so that the same test may run against a real API server; faults and
logs are this double's alone.
"""

from __future__ import annotations

import copy
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import yaml

from tests import core_kinds, crds

Object = dict[str, Any]
Key = tuple[str, str, str]
"""Plural, namespace, name."""


class Refusal(Exception):
    """An answer other than success, with Kubernetes' word for it."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = {
            "kind": "Status",
            "status": "Failure",
            "code": status,
            "reason": reason,
            "message": message,
        }


@dataclass
class Fault:
    """What happens to the next requests whose `METHOD path?query` contains `match`."""

    match: str
    times: int
    status: int
    """0: the connection breaks before the request is done; 1: after it, so that the answer is lost."""
    headers: dict[str, str]


@dataclass
class Server:
    """The server's state; `log`, `fail`, `cut` and `compact` are for tests."""

    tokens: set[str] = field(default_factory=lambda: {"secret"})
    objects: dict[Key, Object] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    """`METHOD path?query` of every request, in order."""
    _version: int = 100
    _oldest: int = 0
    _events: list[tuple[int, str, Object, Key]] = field(default_factory=list)
    _logs: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    _faults: list[Fault] = field(default_factory=list)
    _cuts: int = 0
    _changed: threading.Condition = field(default_factory=lambda: threading.Condition(threading.RLock()))
    _port: int = 0

    @contextmanager
    def running(self) -> Iterator[Server]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"state": self}))
        server.daemon_threads = True
        self._port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self.cut()
            server.shutdown()
            thread.join()
            server.server_close()

    def kubeconfig(self, path: Path, token: str = "secret", namespace: str = "unirg") -> Path:
        """Write the file by which a client finds the server."""
        whole = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "double",
            "clusters": [{"name": "double", "cluster": {"server": f"http://127.0.0.1:{self._port}"}}],
            "users": [{"name": "tester", "user": {"token": token}}],
            "contexts": [
                {"name": "double", "context": {"cluster": "double", "user": "tester", "namespace": namespace}}
            ],
        }
        path.write_text(yaml.safe_dump(whole))
        return path

    def fail(self, match: str, status: int, times: int = 1, **headers: str) -> None:
        """Let the next matching requests fail; headers' `_` stands for `-`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._faults.append(Fault(match, times, status, named))

    def log(self, pod: str, *lines: str, namespace: str = "unirg") -> None:
        """Let a pod's container write lines."""
        with self._changed:
            written = self._logs.setdefault((namespace, pod), [])
            written += [
                f"{datetime.now(UTC).isoformat().removesuffix('+00:00')}789Z {line}" for line in lines
            ]
            self._changed.notify_all()

    def cut(self) -> None:
        """Break every open watch and log in the middle of a line."""
        with self._changed:
            self._cuts += 1
            self._changed.notify_all()

    def compact(self) -> None:
        """Forget all versions so far, as a server that restarts does: a watch from one gets 410 Gone."""
        with self._changed:
            self._version += 1  # something else has changed meanwhile
            self._oldest = self._version
            self._events.clear()
            self._changed.notify_all()

    def count(self, match: str) -> int:
        return sum(match in request for request in self.requests)

    def fault(self, request: str) -> Fault | None:
        with self._changed:
            self.requests.append(request)
            for one in self._faults:
                if one.times and one.match in request:
                    one.times -= 1
                    return one
        return None

    def create(self, key: Key, thing: Object, validation: str) -> Object:
        with self._changed:
            if key in self.objects:
                raise Refusal(409, "AlreadyExists", f'{key[0]} "{key[2]}" already exists')
            made = copy.deepcopy(thing)
            made.pop("status", None)
            self._check(key, made, None, validation)
            made["metadata"] |= {"namespace": key[1], "uid": str(uuid.uuid4()), "generation": 1}
            made["metadata"]["creationTimestamp"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            return self._store("ADDED", key, made)

    def replace(self, key: Key, thing: Object, part: str, validation: str) -> Object:
        with self._changed:
            old = self.get(key)
            wanted = thing["metadata"].get("resourceVersion")
            if not wanted and key[0] != "pods":  # custom resources are never updated unconditionally
                wrong = "metadata.resourceVersion: Invalid value: 0x0: must be specified for an update"
                raise Refusal(422, "Invalid", f'{key[0]} "{key[2]}" is invalid: {wrong}')
            if wanted and wanted != old["metadata"]["resourceVersion"]:
                raise Refusal(409, "Conflict", f"{key[2]}: the object has been modified; apply to the latest")
            new = copy.deepcopy(old)
            if part == "status":
                new["status"] = thing.get("status", {})
            else:
                assert not part, f"the subresource {part} is not served"
                new = copy.deepcopy(thing) | {"status": old.get("status", {})}
                new["metadata"] = old["metadata"] | thing["metadata"]
            if not new.get("status"):
                new.pop("status", None)
            self._check(key, new, old, validation)
            if new.get("spec") != old.get("spec"):
                new["metadata"]["generation"] = old["metadata"]["generation"] + 1
            if "deletionTimestamp" in new["metadata"] and not new["metadata"].get("finalizers"):
                return self._remove(key)
            return self._store("MODIFIED", key, new)

    def patch(self, key: Key, change: Object, part: str, validation: str) -> Object:
        """A merge of top-level parts: all that a controller's patch of a status needs."""
        with self._changed:
            return self.replace(key, copy.deepcopy(self.get(key)) | change, part, validation)

    def delete(self, key: Key, options: Object) -> Object:
        with self._changed:
            old = self.get(key)
            if options.get("preconditions", {}).get("uid", old["metadata"]["uid"]) != old["metadata"]["uid"]:
                raise Refusal(409, "Conflict", f"{key[2]}: the UID in the precondition is another object's")
            if "deletionTimestamp" in old["metadata"]:
                return old
            if old["metadata"].get("finalizers"):
                stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
                return self._store(
                    "MODIFIED", key, old | {"metadata": old["metadata"] | {"deletionTimestamp": stamp}}
                )
            return self._remove(key)

    def get(self, key: Key) -> Object:
        with self._changed:
            if key not in self.objects:
                raise Refusal(404, "NotFound", f'{key[0]} "{key[2]}" not found')
            return self.objects[key]

    def select(self, plural: str, namespace: str, query: dict[str, str]) -> Object:
        with self._changed:
            items = [
                thing
                for key, thing in self.objects.items()
                if key[:2] == (plural, namespace) and _selected(thing, query)
            ]
            return {"kind": "List", "metadata": {"resourceVersion": str(self._version)}, "items": items}

    def watch(self, plural: str, namespace: str, query: dict[str, str]) -> Iterator[bytes | None]:
        """Events as lines; None where the connection is to break."""
        seen, until, cuts = int(query["resourceVersion"]), _deadline(query), self._cuts
        while True:
            with self._changed:
                if seen < self._oldest:
                    gone = Refusal(410, "Expired", f"too old resource version: {seen} ({self._oldest})")
                    yield json.dumps({"type": "ERROR", "object": gone.body}).encode() + b"\n"
                    return
                fresh = [event for event in self._events if event[0] > seen]
                if not fresh:
                    if self._cuts > cuts:
                        yield b'{"type": "MODI'
                        yield None
                    if not self._changed.wait(until - time.monotonic()):
                        return
                    continue
            for version, kind, thing, key in fresh:
                seen = version
                if key[:2] == (plural, namespace) and _selected(thing, query):
                    yield json.dumps({"type": kind, "object": thing}).encode() + b"\n"

    def read_log(self, namespace: str, pod: str, query: dict[str, str]) -> Iterator[bytes | None]:
        """A log's lines; None where the connection is to break."""
        status = self.get(("pods", namespace, pod)).get("status", {})
        if not any("waiting" not in one["state"] for one in status.get("containerStatuses", [])):
            raise Refusal(400, "BadRequest", f'container in pod "{pod}" is waiting to start: PodInitializing')
        return self._written(namespace, pod, query)

    def _written(self, namespace: str, pod: str, query: dict[str, str]) -> Iterator[bytes | None]:
        lines, cuts = self._logs.setdefault((namespace, pod), []), self._cuts
        at = max(len(lines) - int(query.get("tailLines", len(lines))), 0)
        while at < len(lines) and lines[at][:19] < query.get("sinceTime", "")[:19]:
            at += 1
        while True:
            with self._changed:
                fresh, at = lines[at:], len(lines)
                status = self.objects.get(("pods", namespace, pod), {}).get("status", {})
                ended = status.get("phase") in (None, "Succeeded", "Failed")
                if not fresh and query.get("follow") == "true" and not ended:
                    if self._cuts > cuts:
                        yield lines[-1][: len(lines[-1]) // 2].encode() if lines else b""
                        yield None
                    self._changed.wait(1)
                    continue
            yield "".join(f"{line}\n" for line in fresh).encode()
            if ended or query.get("follow") != "true":
                return

    def _check(self, key: Key, thing: Object, old: Object | None, validation: str) -> None:
        if validation not in ("Ignore", "Warn", "Strict"):
            raise Refusal(422, "Invalid", f'fieldValidation: Unsupported value: "{validation}"')
        if key[0] == "pods":
            return
        if key[0] in core_kinds.KINDS:
            core_kinds.fill_defaults(key[0], thing)
            if wrong := core_kinds.problems(key[0], thing, old):
                raise Refusal(422, "Invalid", f'{key[0]} "{key[2]}" is invalid: {"; ".join(wrong)}')
            return
        if validation != "Strict":
            crds.prune(key[0], thing)
        crds.fill_defaults(key[0], thing)
        if wrong := crds.problems(key[0], thing, old):
            strict = [text for text in wrong if text.startswith("unknown field")]
            if strict:
                raise Refusal(400, "BadRequest", f"strict decoding error: {', '.join(strict)}")
            raise Refusal(422, "Invalid", f'{key[0]} "{key[2]}" is invalid: {"; ".join(wrong)}')

    def _store(self, kind: str, key: Key, thing: Object) -> Object:
        self._version += 1
        thing = copy.deepcopy(thing)
        thing["metadata"]["resourceVersion"] = str(self._version)
        self.objects[key] = thing
        self._events.append((self._version, kind, thing, key))
        self._changed.notify_all()
        return thing

    def _remove(self, key: Key) -> Object:
        gone = self._store("DELETED", key, self.objects[key])
        del self.objects[key]
        return gone


def _deadline(query: dict[str, str]) -> float:
    return time.monotonic() + float(query.get("timeoutSeconds", 300))


def _selected(thing: Object, query: dict[str, str]) -> bool:
    labels = dict(pair.split("=", 1) for pair in query.get("labelSelector", "").split(",") if pair)
    fields = dict(pair.split("=", 1) for pair in query.get("fieldSelector", "").split(",") if pair)
    assert fields.keys() <= {"metadata.name"}, "a selector that this double does not know"
    has = thing["metadata"].get("labels", {})
    return labels.items() <= has.items() and fields.get("metadata.name") in (None, thing["metadata"]["name"])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(self._read)

    def do_POST(self) -> None:
        self._answer(self._create, status=201)

    def do_PATCH(self) -> None:
        self._answer(lambda query: self.state.patch(*self._change(query)))

    def do_PUT(self) -> None:
        self._answer(lambda query: self.state.replace(*self._change(query)))

    def do_DELETE(self) -> None:
        self._answer(lambda query: self.state.delete(self._key(), self._body()))

    def _names(self) -> tuple[str, str, str, str]:
        """Plural, namespace, name, subresource of the path."""
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        rest = parts[parts.index("namespaces") + 1 :]
        plural, named = rest[1], tuple(parts[1:3]) if parts[0] == "apis" else ("", parts[1])
        core = plural == "pods" or core_kinds.KINDS.get(plural, ())[:2] == named
        if not core and not crds.known(plural, *named):
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        name, part = [*rest[2:4], "", ""][:2]
        return plural, rest[0], name, part

    def _key(self, thing: Object | None = None) -> Key:
        plural, namespace, name, _ = self._names()
        return plural, namespace, name or (thing or {})["metadata"]["name"]

    def _body(self) -> Object:
        return dict(json.loads(self._sent or b"{}"))

    def _create(self, query: dict[str, str]) -> Object:
        return self.state.create(self._key(self._body()), self._body(), query.get("fieldValidation", "Warn"))

    def _change(self, query: dict[str, str]) -> tuple[Key, Object, str, str]:
        return self._key(), self._body(), self._names()[3], query.get("fieldValidation", "Warn")

    def _read(self, query: dict[str, str]) -> Object | Iterator[bytes | None]:
        plural, namespace, name, part = self._names()
        if part == "log":
            return self.state.read_log(namespace, name, query)
        if name:
            return self.state.get((plural, namespace, name))
        if query.get("watch") == "true":
            return self.state.watch(plural, namespace, query)
        return self.state.select(plural, namespace, query)

    def _answer(self, act: Callable[[dict[str, str]], Any], status: int = 200) -> None:
        self._sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.state.fault(f"{self.command} {self.path}")
        headers: dict[str, str] = {}
        try:
            token = (self.headers.get("Authorization") or "").partition(" ")[2]
            if token not in self.state.tokens:
                raise Refusal(401, "Unauthorized", "Unauthorized")
            if fault and fault.status > 1:
                headers = fault.headers
                raise Refusal(fault.status, "Fault", "a fault that the test wants")
            lost = fault is not None and fault.status == 0
            given = {} if lost else act(dict(parse_qsl(urlsplit(self.path).query)))
        except Refusal as refusal:
            status, given = refusal.status, refusal.body
        if fault and fault.status < 2:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if isinstance(given, dict):
            data = json.dumps(given).encode()
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._stream(given)

    def _stream(self, chunks: Iterator[bytes | None]) -> None:
        try:
            for chunk in chunks:
                if chunk is None:
                    self.close_connection = True
                    return
                if chunk:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            self.wfile.write(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):  # the client has seen enough
            self.close_connection = True
