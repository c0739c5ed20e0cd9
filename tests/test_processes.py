"""Child processes: a server that is ready or explained, and no child that outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from unirg import processes
from unirg.errors import UserError

ROOT = Path(__file__).parent.parent
SERVER = """
import argparse, os, signal, sys, time
from pathlib import Path
from unirg.processes import die_with_parent

parser = argparse.ArgumentParser()
parser.add_argument("--ready-file", type=Path)
parser.add_argument("--die-with-parent", type=int)
parser.add_argument("--fail", action="store_true")
parser.add_argument("--deaf", action="store_true")
given = parser.parse_args()
die_with_parent(signal.SIGTERM, given.die_with_parent)
if given.fail:
    sys.exit("the port is in use")
if given.deaf:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
aside = given.ready_file.with_name("aside")
aside.write_text(f"{os.getpid()} {os.environ.get('COLOUR')}\\n")
aside.replace(given.ready_file)
time.sleep(60)
"""


def server(*options: str) -> list[str]:
    return [sys.executable, "-c", SERVER, *options]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def soon(true: Callable[[], object]) -> bool:
    deadline = time.monotonic() + 20
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_a_server_is_up_inside_the_block_and_gone_after_it() -> None:
    with processes.server(server(), "the server", environment={"COLOUR": "blue"}) as told:
        pid, colour = told.split()
        assert colour == "blue"
        assert alive(int(pid))
    assert not alive(int(pid))


def test_a_server_is_gone_when_the_block_fails() -> None:
    pids = []

    def fail() -> None:
        with processes.server(server(), "the server") as told:
            pids.append(int(told.split()[0]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not alive(pids[0])


def test_a_server_that_does_not_start_shows_its_last_words() -> None:
    with (
        pytest.raises(UserError, match=r"(?s)the server ended with exit code 1.*the port is in use"),
        processes.server(server("--fail"), "the server"),
    ):
        pass


def test_a_server_that_is_not_ready_in_time_is_ended_and_named() -> None:
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    with (
        pytest.raises(UserError, match=r"the server was not ready after 0\.3 s"),
        processes.server(sleeper, "the server", timeout_s=0.3),
    ):
        pass


def test_a_server_that_does_not_listen_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STOP_S", 0.3)
    with processes.server(server("--deaf"), "the server") as told:
        pid = int(told.split()[0])
    assert not alive(pid)


def test_a_server_that_died_meanwhile_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with processes.server(server(), "the server") as told:
        pid = int(told.split()[0])
        os.kill(pid, signal.SIGKILL)
        assert soon(lambda: not alive(pid))
    assert "the server ended with exit code -9" in capsys.readouterr().err


PARENT = """
import sys
from unirg import processes
with processes.server(sys.argv[1:], "the server") as told:
    print(told, flush=True)
    sys.stdin.readline()
"""


def test_a_server_ends_with_a_parent_that_is_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, *server()],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline().split()[0])
        parent.kill()
    assert soon(lambda: not alive(pid))


LATE = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", '''
import os, sys, time
from unirg.processes import die_with_parent
while os.getppid() == int(sys.argv[1]):
    time.sleep(0.01)
die_with_parent(parent=int(sys.argv[1]))
time.sleep(60)
''', str(os.getpid())])
print(child.pid, flush=True)
"""


def test_a_child_that_asks_only_after_its_parents_end_ends_too() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LATE], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=60, check=True
    )
    assert soon(lambda: not alive(int(done.stdout)))


TREE = """
import os, signal, subprocess, sys, time
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
middle = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {deaf!r}])"
from unirg import processes
child = subprocess.Popen([sys.executable, "-c", middle], stdout=subprocess.PIPE)
child.stdout.readline()
import psutil
tree = psutil.Process().children(recursive=True)
processes.end_descendants(grace_s=0.3)
child.wait()
print(len(tree), len(psutil.wait_procs(tree, 20)[1]))
"""


def test_every_descendant_is_ended_even_one_that_does_not_listen() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TREE], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=60, check=True
    )
    assert done.stdout == "2 0\n"


def test_ctrl_c_never_reaches_a_child_begun_in_the_block_and_this_process_still_gets_it() -> None:
    with processes.interrupts_kept_from_children():
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        child.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
