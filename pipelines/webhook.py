"""The HTTP server that an object store sends its notices to.

`POST /events` with a bearer token; `GET /healthz` says whether runs can still be started, `GET /readyz`
whether notices are taken. It speaks plain HTTP: TLS is the ingress's or the mesh's. Nothing of a request is
logged.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pipelines.events import Unreadable
from pipelines.listen import Listener
from unirg.errors import UserError
from unirg.processes import on_sigterm
from unirg.serving.access import allowed, read_token
from unirg.telemetry import to_stderr

LARGEST = 1 << 20
"""Bytes of a body: a notice is one or two thousand, and stores send a few at a time."""
REQUEST_S = 20.0
"""How long a request may take as a whole."""
GRACE_S = 20.0
"""How long a call to KFP may still take at the end: a run that it starts is seen by the next listener."""
AT_ONCE = 64
"""Connections that are served at the same time; others wait in the kernel's queue."""
LISTEN_TOKEN = "UNIRG_LISTEN_TOKEN"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = REQUEST_S
    listener: Listener
    token: Callable[[], str]
    working: Callable[[], bool]

    def log_message(self, *_: Any) -> None:
        """Nothing: a path or a header may quote a key."""

    def version_string(self) -> str:
        return "unirg"

    def do_GET(self) -> None:
        if self.path == "/healthz":
            self._answer(200 if self.working() else 503)
        elif self.path == "/readyz":
            self._answer(200 if self.working() and not self.listener.ending else 503)
        else:
            self._answer(404)

    def do_POST(self) -> None:
        if self.path != "/events":
            self._answer(404)
            return
        try:
            token = self.token()
        except UserError as error:  # being replaced, perhaps
            to_stderr(f"listen: {error}")
            self._answer(503)
            return
        # Before the body is read, so that a stranger sends us nothing.
        if not allowed(self.headers.get("Authorization"), token):
            self._answer(401)
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or "Transfer-Encoding" in self.headers:
            self._answer(411)
        elif int(length) > LARGEST:
            self._answer(413)
        else:
            self._take(self.rfile.read(int(length)), int(length))

    def _take(self, body: bytes, length: int) -> None:
        if len(body) < length:  # it broke off; nobody hears an answer
            return
        if self.listener.ending or not self.working():
            self._answer(503)
            return
        try:
            headers = {name.lower(): text for name, text in self.headers.items()}
            self._answer(202, new=self.listener.receive(headers, body))
        except Unreadable as error:
            to_stderr(f"listen: refused a request: {error}")
            self._answer(400, error=str(error))

    def _answer(self, status: int, **told: Any) -> None:
        data = json.dumps(told).encode()
        self.close_connection = True
        self.send_response(status)
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[_Handler]) -> None:
        self.slots = threading.BoundedSemaphore(AT_ONCE)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.slots.acquire()  # each is freed by its time limit
        try:
            super().process_request(request, client_address)
        except BaseException:
            self.slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        limit = threading.Timer(REQUEST_S, _hang_up, (request,))
        limit.daemon = True
        limit.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            limit.cancel()
            self.slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke; the trace that Python prints would quote the request."""


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):  # it is closed already
        connection.shutdown(socket.SHUT_RDWR)


def token_of(file: str) -> str:
    """The token that senders must show: a file's, read anew for each request, or the environment's.

    Raises:
        UserError: there is none, or it is too short to be one.
    """
    token = read_token(file, LISTEN_TOKEN)
    if len(token) < 16:
        raise UserError(
            f"{file or LISTEN_TOKEN} holds no token of 16 or more characters: name a file with --token-file "
            f"or set {LISTEN_TOKEN}; `openssl rand -hex 32` makes one"
        )
    return token


@contextmanager
def served(listener: Listener, address: str, port: int, token_file: str = "") -> Iterator[str]:
    """Let a listener work, and notices come in over HTTP; the URL for them.

    Args:
        address: of this machine; 0.0.0.0 = every one.
        port: 0 = any.
        token_file: see `token_of`.

    Raises:
        UserError: there is no token, or the port is taken.
    """
    token_of(token_file)
    worker = threading.Thread(target=listener.work, daemon=True)
    given = {
        "listener": listener,
        "token": staticmethod(lambda: token_of(token_file)),
        "working": staticmethod(worker.is_alive),
    }
    try:
        server = _Server((address, port), type("Bound", (_Handler,), given))
    except OSError as error:
        remedy = "give another --port or --address"
        raise UserError(f"cannot listen on {address}:{port} ({error.strerror}): {remedy}") from None
    door = threading.Thread(target=server.serve_forever, args=(0.2,), daemon=True)
    with server:
        worker.start()
        door.start()
        try:
            yield f"http://{address}:{server.server_address[1]}/events"
        finally:
            listener.end()
            worker.join(GRACE_S)
            server.shutdown()
            door.join()


def serve(listener: Listener, address: str, port: int, token_file: str = "") -> None:
    """`served` until SIGTERM or Ctrl-C."""
    over = threading.Event()
    with on_sigterm(over.set), served(listener, address, port, token_file) as url:
        to_stderr(f"listen: {url}")
        # In pieces: Python misses a signal that comes just before a wait, until its end.
        while not over.wait(1.0):
            pass
    to_stderr("listen: ended")
