"""A real PostgreSQL for tests, from Debian's package: on loopback, in a folder of its own, with a password.

postgres refuses to run as root, so root starts it as the package's user `postgres`; anybody else as himself.
The kernel ends it when the thread that started it dies.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

USER = "postgres"
PACKAGE = "postgresql"
START_TIMEOUT_S = 60
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",  # nothing here outlives the test
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "100",
}


class PostgresError(Exception):
    """The server cannot run here, or failed to; the text says why and what to do."""


@dataclass(frozen=True)
class Server:
    """Where a running server answers: `postgresql://USER:PASSWORD@HOST:PORT/postgres`."""

    uri: str

    @property
    def password(self) -> str:
        return urlsplit(self.uri).password or ""

    @contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """The URI of a new database, empty or a copy of another; in the end it goes, whoever is in it."""
        name = f"unirg_test_{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield urlunsplit(urlsplit(self.uri)._replace(path=f"/{name}"))
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def execute(self, statement: str, uri: str = "") -> list[Any]:
        """The rows of one statement, outside any transaction."""
        import psycopg

        with psycopg.connect(uri or self.uri, autocommit=True) as connection:
            answer = connection.execute(statement.encode())
            return answer.fetchall() if answer.description else []


def _programs() -> Path | None:
    """The folder with `initdb` and `postgres`: of the newest version here, as Debian keeps them off PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


def why_not() -> str | None:
    """Why the server cannot run on this machine, with the remedy; None where it can."""
    if _programs() is None:
        return (
            f"initdb not found: run tools/apt.sh as root (it installs {PACKAGE}), or set "
            "UNIRG_TEST_POSTGRES to postgresql://USER:PASSWORD@HOST/DATABASE of a user who may make databases"
        )
    return None


@contextmanager
def running() -> Iterator[Server]:
    """Run a server for the length of a `with` block.

    Raises:
        PostgresError: it cannot run here, or did not start.
    """
    programs = _programs()
    if programs is None:
        raise PostgresError(why_not())
    folder = Path(tempfile.mkdtemp(prefix="unirg-postgres-"))
    process = None
    try:
        as_user = ["setpriv", "--pdeathsig", "QUIT"]  # postgres' word for an immediate shutdown
        if os.geteuid() == 0:
            shutil.chown(folder, USER, USER)
            as_user += ["--reuid", USER, "--regid", USER, "--clear-groups"]
        password = secrets.token_hex(16)
        (folder / "password").write_text(password)
        (folder / "password").chmod(0o644)  # of a folder that only the server's user may enter
        _make(folder, [*as_user, programs / "initdb"])
        process, port = _start(folder, [*as_user, programs / "postgres"])
        yield Server(f"postgresql://{USER}:{password}@127.0.0.1:{port}/postgres")
    finally:
        if process is not None:
            process.send_signal(signal.SIGQUIT)
            process.wait(timeout=START_TIMEOUT_S)
        shutil.rmtree(folder)


def _make(folder: Path, command: list[Any]) -> None:
    options: list[Any] = [
        "--username",
        USER,
        "--auth",
        "scram-sha-256",
        "--pwfile",
        folder / "password",
        "--no-sync",
    ]
    done = subprocess.run(
        [*command, "--pgdata", folder / "data", *options, "--locale", "C.UTF-8", "--encoding", "UTF8"],
        cwd=folder,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
    )
    if done.returncode:
        raise PostgresError(f"initdb ended with {done.returncode}: {done.stderr.strip()[-300:]}")


def _start(folder: Path, command: list[Any]) -> tuple[subprocess.Popen[bytes], int]:
    """Start it on a free port; where another process takes that port first, on the next one."""
    for _ in range(5):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        settings = [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
        log = folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "-D", folder / "data", "-p", str(port), *settings],
                cwd=folder,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while process.poll() is None and time.monotonic() < deadline:
            if "database system is ready to accept connections" in log.read_text(errors="replace"):
                return process, port
            time.sleep(0.05)
        last = log.read_text(errors="replace").strip()
        process.kill()
        process.wait()
        if "Address already in use" not in last:
            break
    raise PostgresError(f"postgres did not start: {last[-300:]}")


def _environment() -> dict[str, str]:
    # Nothing of the caller's PGHOST, PGDATA and the like.
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
