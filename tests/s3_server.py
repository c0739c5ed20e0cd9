"""A real S3 server for tests: Ceph's RADOS Gateway on loopback, from Debian's own packages.

One monitor, one storage daemon that keeps objects in memory, and one gateway, without a cluster manager
or systemd, as any user, in a private folder and on free ports. It checks signatures, honours
`If-None-Match` and takes multipart uploads: what moto does not do, or only in part.

    python tests/s3_server.py start --dir DIR     prints endpoint, access key and secret as JSON
    python tests/s3_server.py stop --dir DIR
    with running(DIR) as server: ...

A supervisor process owns the three daemons. It ends them when told to, when one of them dies, and when the
process it was started for dies; and the kernel ends them when the supervisor itself is killed.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import http.client
import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

PACKAGES = ("radosgw", "ceph-mon", "ceph-osd", "ceph-common")
BINARIES = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
COMMAND_TIMEOUT_S = 60
"""Each step takes well under a second on an idle machine."""
STOP_TIMEOUT_S = 20
PR_SET_PDEATHSIG = 1  # linux/prctl.h
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

CONF = """\
[global]
fsid = {fsid}
mon host = {monitors}
keyring = {dir}/keyring
run dir = {dir}
crash dir = {dir}
admin socket =
pid file =
log file = {dir}/$name.log
mon data = {dir}/mon
osd data = {dir}/osd
public network = 127.0.0.0/8
# One copy on one storage daemon, and a disk that may be nearly full.
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail crit = 1
osd objectstore = memstore
memstore device bytes = 8589934592
# A monitor waits a second before each change, for others to come; there are none (11 s of start-up).
paxos propose interval = 0.05
paxos min wait = 0.02
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw thread pool size = 64
"""


class S3ServerError(Exception):
    """The server cannot run here, or failed to; the text says why and what to do."""


@dataclass(frozen=True)
class Server:
    """Where a running server answers, and the key of its one user."""

    endpoint_url: str
    access_key: str
    secret_key: str


def why_not() -> str | None:
    """Why the server cannot run on this machine, with the remedy; None where it can."""
    missing = [binary for binary in BINARIES if shutil.which(binary) is None]
    if missing:
        return (
            f"{', '.join(missing)} not found: run tools/apt.sh as root (it installs {', '.join(PACKAGES)}), "
            "or set UNIRG_TEST_S3_ENDPOINT and the AWS_* keys of another S3 server"
        )
    return None


def start(directory: Path, owner: int | None = None) -> Server:
    """Start the server, or find it already running in `directory`; return when it answers.

    Args:
        directory: a folder of its own: absent, empty, or left by an earlier server. `stop` removes it.
        owner: the server ends when the process with this id does. None: only `stop` ends it.

    Raises:
        S3ServerError: it cannot run here, did not start, or the folder holds other things.
    """
    if reason := why_not():
        raise S3ServerError(reason)
    directory = directory.absolute()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(directory.iterdir()) and not (directory / "start.lock").exists():
        raise S3ServerError(f"{directory} holds other files: name a folder of the server's own")
    with open(directory / "start.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes may ask at once: the first one starts it
        if _supervised(directory):
            return Server(**json.loads((directory / "server.json").read_text()))
        # In a session of its own (Ctrl-C is for the owner), and nobody's child (the starter may end first).
        command = ["setsid", "--fork", sys.executable, __file__, "supervise", "--dir", str(directory)]
        if owner is not None:
            command += ["--owner", str(owner)]
        answer = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ).stdout
        told = json.loads(answer or '{"error": "its supervisor died"}')
        if "error" in told:
            raise S3ServerError(f"the S3 server did not start: {told['error']}")
        return Server(**told)


def stop(directory: Path) -> None:
    """End the server and remove its folder; nothing happens where none runs.

    Raises:
        S3ServerError: it would not end.
    """
    directory = directory.absolute()
    with suppress(FileNotFoundError, ProcessLookupError):
        supervisor = os.pidfd_open(int((directory / "supervisor.pid").read_text()))
        if _supervised(directory):  # asked after opening: the id is not that of a later process
            signal.pidfd_send_signal(supervisor, signal.SIGTERM)
            if not select.select([supervisor], [], [], STOP_TIMEOUT_S)[0]:
                raise S3ServerError(f"the S3 server in {directory} did not end within {STOP_TIMEOUT_S} s")
        os.close(supervisor)
    if (directory / "start.lock").exists():
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def running(directory: Path) -> Iterator[Server]:
    """Run the server for the length of a `with` block; it also ends with this process."""
    try:
        yield start(directory, owner=os.getpid())
    finally:
        stop(directory)


def _supervised(directory: Path) -> bool:
    """True while a supervisor lives: it holds a lock that only its death or exit releases."""
    try:
        with open(directory / "supervisor.lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def supervise(directory: Path, owner: int | None) -> None:
    """The supervisor: bring the daemons up, tell the starter on stdout, wait for a reason to end them."""
    lock = open(directory / "supervisor.lock", "w")  # noqa: SIM115 - held until this process ends
    fcntl.flock(lock, fcntl.LOCK_EX)
    (directory / "supervisor.pid").write_text(str(os.getpid()))
    for number in ENDING_SIGNALS:
        signal.signal(number, _leave)
    daemons: dict[str, subprocess.Popen[bytes]] = {}
    try:
        watched: list[int] = []
        try:
            if owner is not None:
                watched.append(os.pidfd_open(owner))
            told = asdict(_bring_up(directory, daemons))
        except (S3ServerError, OSError, subprocess.SubprocessError) as error:
            told = {"error": str(error)}
        (directory / "server.json").write_text(json.dumps(told))
        print(json.dumps(told), flush=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the starter reads to the end
        if "error" not in told:
            watched += [os.pidfd_open(daemon.pid) for daemon in daemons.values()]
            select.select(watched, [], [])  # a pidfd becomes readable when its process ends
    finally:
        _ignore_signals()
        for daemon in daemons.values():
            daemon.kill()  # nothing in memory is worth an orderly end
            daemon.wait()
        if owner is not None:
            shutil.rmtree(directory, ignore_errors=True)


def _ignore_signals() -> None:
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _leave(*_: object) -> NoReturn:
    _ignore_signals()  # a second one must not interrupt the cleaning up
    raise SystemExit(0)


def _bring_up(directory: Path, daemons: dict[str, subprocess.Popen[bytes]]) -> Server:
    """Make a cluster of one, add one user, open the gateway; each daemon started joins `daemons`."""
    for leftover in ("mon", "osd"):
        shutil.rmtree(directory / leftover, ignore_errors=True)
        (directory / leftover).mkdir()
    (directory / "keyring").unlink(missing_ok=True)
    fsid, osd_id = str(uuid.uuid4()), str(uuid.uuid4())
    v2, v1, port = _free_ports(3)
    monitors = f"[v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]"
    conf, keyring = str(directory / "ceph.conf"), str(directory / "keyring")
    Path(conf).write_text(CONF.format(fsid=fsid, monitors=monitors, dir=directory, port=port))

    _run(
        "monmaptool", "--create", "--fsid", fsid, "--addv", "a", monitors, f"{directory}/monmap", "--clobber"
    )
    _run("ceph-authtool", "-C", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
    every = [word for service in ("mon", "osd", "mgr") for word in ("--cap", service, "allow *")]
    _run("ceph-authtool", keyring, "--gen-key", "-n", "client.admin", *every)
    _run("ceph-mon", "-c", conf, "--mkfs", "-i", "a", "--monmap", f"{directory}/monmap", "--keyring", keyring)
    daemons["ceph-mon"] = _daemon(directory, "ceph-mon", "-c", conf, "-f", "-i", "a")

    osd_key = _run("ceph-authtool", "--gen-print-key").strip()
    _run("ceph", "-c", conf, "osd", "new", osd_id, "-i", "-", text=json.dumps({"cephx_secret": osd_key}))
    _run("ceph-authtool", keyring, "-n", "osd.0", "--add-key", osd_key)
    _run("ceph-osd", "-c", conf, "-i", "0", "--mkfs", "--osd-uuid", osd_id)
    daemons["ceph-osd"] = _daemon(directory, "ceph-osd", "-c", conf, "-f", "-i", "0")

    server = Server(f"http://127.0.0.1:{port}", secrets.token_hex(10).upper(), secrets.token_hex(20))
    keys = ["--access-key", server.access_key, "--secret-key", server.secret_key]
    _run("radosgw-admin", "-c", conf, "user", "create", "--uid", "test", "--display-name", "test", *keys)
    daemons["radosgw"] = _daemon(directory, "radosgw", "-c", conf, "-f", "-n", "client.admin")
    _wait_until_it_answers(directory, port, daemons)
    return server


def _free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on now."""
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


def _environment() -> dict[str, str]:
    # Nothing of a virtual environment: `ceph` is a Python script of the system's.
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


def _run(*command: str, text: str | None = None) -> str:
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, env=_environment()
    )
    if done.returncode != 0:
        raise S3ServerError(
            f"{command[0]} ended with {done.returncode}: {_last_lines(done.stderr or done.stdout)}"
        )
    return done.stdout


def _last_lines(text: str) -> str:
    return " / ".join(text.strip().splitlines()[-3:])


def _daemon(directory: Path, *command: str) -> subprocess.Popen[bytes]:
    """A daemon that the kernel kills when this process dies, however it dies."""
    libc = ctypes.CDLL(None, use_errno=True)

    def die_with_the_supervisor() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    with open(directory / f"{command[0]}.out", "wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_environment(),
            preexec_fn=die_with_the_supervisor,
        )


def _wait_until_it_answers(directory: Path, port: int, daemons: dict[str, subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + COMMAND_TIMEOUT_S
    while time.monotonic() < deadline:
        for name, daemon in daemons.items():
            if daemon.poll() is not None:
                last = _last_lines((directory / f"{name}.out").read_text(errors="replace"))
                raise S3ServerError(f"{name} ended with {daemon.returncode}: {last}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with suppress(OSError):
            connection.request("GET", "/")
            if connection.getresponse().status == 200:
                return
        connection.close()
        time.sleep(0.05)
    raise S3ServerError(f"the gateway did not answer within {COMMAND_TIMEOUT_S} s")


def main() -> int:
    parser = argparse.ArgumentParser(description="Start or stop an S3 server for tests (Ceph RADOS Gateway).")
    parser.add_argument("verb", choices=["start", "stop", "supervise"])
    parser.add_argument("--dir", type=Path, required=True, help="a folder of the server's own")
    parser.add_argument("--owner", type=int, help="end the server when the process with this id ends")
    options = parser.parse_args()
    try:
        if options.verb == "start":
            print(json.dumps(asdict(start(options.dir, options.owner)), indent=2))
        elif options.verb == "stop":
            stop(options.dir)
        else:
            supervise(options.dir, options.owner)
    except S3ServerError as error:
        print(f"s3_server: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
