"""A model hub on loopback: the few answers that huggingface_hub's client needs for a snapshot."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".pth", ".safetensors", ".gz")
"""Such files are stored apart on the real hub, which then states their SHA-256."""


class Hub(ThreadingHTTPServer):
    """Serves a folder of repositories, `<owner>/<name>/<file>`."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.root = root
        self.refuse: dict[str, tuple[int, str]] = {}
        """HTTP status and the hub's error code, by repository."""
        self.hold = ""
        """A file whose download waits for `release`."""
        self.held, self.release = threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answers(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        api = path.startswith("api/models/")
        parts = path.removeprefix("api/models/").split("/")
        repository, rest = "/".join(parts[:2]), parts[2:]
        folder = self.server.root / repository
        if repository in self.server.refuse:
            status, code = self.server.refuse[repository]
            return self._send(status, b"{}", {"X-Error-Code": code})
        if not folder.is_dir():
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if api and rest[0] == "revision":
            return self._json({"id": repository, "sha": COMMIT, "siblings": []})
        if api and rest[0] == "tree":
            return self._json([_entry(file, folder) for file in sorted(folder.rglob("*")) if file.is_file()])
        file = folder.joinpath(*rest[2:])
        if not file.is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        data = file.read_bytes()
        etag = _sha256(data) if file.name.endswith(LARGE) else hashlib.sha1(data).hexdigest()
        if self.command == "GET" and file.name == self.server.hold:
            self.server.held.set()
            self.server.release.wait(60)
        return self._send(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _entry(file: Path, folder: Path) -> dict[str, object]:
    data = file.read_bytes()
    entry: dict[str, object] = {
        "type": "file",
        "path": file.relative_to(folder).as_posix(),
        "size": len(data),
        "oid": hashlib.sha1(data).hexdigest(),
    }
    if file.name.endswith(LARGE):
        entry["lfs"] = {"oid": _sha256(data), "size": len(data), "pointerSize": 134}
    return entry


@contextmanager
def serving(root: Path) -> Iterator[Hub]:
    hub = Hub(root)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.release.set()
        hub.shutdown()
        hub.server_close()
