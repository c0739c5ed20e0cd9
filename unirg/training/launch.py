"""Training in several processes: on this machine by `local`, in a cluster by `train_job`.

Both run the same command under torchrun, show rank 0's output as it comes and return when training is done.
A failure is told with the rank or pod that caused it, how that ended, the last lines that are ours (others
may quote a report) and the remedy: a `UserError` where another attempt would fail alike, else a
`LaunchError`. A launcher that is told to end (SIGTERM) leaves by `SystemExit(75)`: try again.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent import futures
from contextlib import suppress
from typing import IO, Any

from unirg import cluster
from unirg.cluster import Cluster, ClusterError, Unreachable
from unirg.errors import UserError
from unirg.objects import ARTIFACT, POD, Object, condition, holds, terminated, uid, waits_for
from unirg.processes import on_sigterm
from unirg.telemetry import InternalError, to_stderr
from unirg.training import trainjob
from unirg.training.torchrun import FAILURE_FILE, consequence, ending
from unirg.training.trainjob import MISTAKE, NODE, RUNTIME, TRAINJOB, TrainJobConfig

Echo = Callable[[str], None]
GRACE_S = 60
"""How long local processes may take to save a checkpoint after SIGTERM."""
KEPT_LINES = 200
TOLD_LINES = 8
TAIL = 50
"""Lines of an adopted job's log that are shown before the new ones."""
OURS = re.compile(
    r"unirg: (?!rank \d+ ended)"
    r"|(?:sft|grpo|validation)(?: \([^:)]{0,40}\))?: (?:going on at )?\d+ (?:of \d+ )?(?:steps|studies)\b"
)
"""Lines of the verbs: their errors, which hold no report, and their progress."""
POLL_S = 5.0
SIGNAL_S = 1.0
"""Longest wait of the main thread: Python misses a signal that comes just before a wait, until its end."""
LAST_LINES_S = 30.0
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
"""A machine's own name may not lead to it, as on a laptop away from its network."""


class LaunchError(InternalError):
    """Processes that train have failed; another attempt may succeed."""


def local(processes: int, command: Sequence[str], grace_s: int = GRACE_S, echo: Echo = to_stderr) -> None:
    """Run a command in several processes of this machine, on loopback, until all have ended.

    All end when one fails or when this process ends, even by kill -9: by SIGTERM, and by SIGKILL after the
    grace. Ctrl-C and SIGTERM reach them through us, as SIGTERM, and are waited for.

    Args:
        command: what every process runs, in torchrun's environment (RANK, WORLD_SIZE, ...).
        echo: takes rank 0's lines as they come, and another rank's last ones if it fails.

    Raises:
        UserError: a rank ended with exit code 2.
        LaunchError: a rank ended otherwise, or torchrun did.
        SystemExit: 75, after SIGTERM.
    """
    told, tell = os.pipe()
    address = ("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1")
    with open(told) as failure, on_sigterm(_come_again):
        try:
            child = subprocess.Popen(
                [
                    *(sys.executable, "-m", "unirg.training.torchrun", "--die-with-parent", str(os.getpid())),
                    *("--nproc-per-node", str(processes), *address, "--rdzv-id", f"unirg-{os.getpid()}"),
                    *("--shutdown-timeout", str(grace_s), "--", *command),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # a terminal's Ctrl-C comes through us alone
                pass_fds=[tell],
                env=os.environ | LOOPBACK | {FAILURE_FILE: f"/dev/fd/{tell}"},
            )
        finally:
            os.close(tell)
        lines = deque[str](maxlen=KEPT_LINES)
        reader = threading.Thread(target=_read, args=(child.stdout, lines, echo), daemon=True)
        reader.start()
        try:
            while child.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    child.wait(SIGNAL_S)
        except BaseException:
            child.terminate()
            with suppress(subprocess.TimeoutExpired):
                child.wait(grace_s + 10)
            raise
        finally:
            child.kill()  # the ranks end with it
            child.wait()
            reader.join(5)  # a stray of a rank may hold the pipe
        if child.returncode:
            raise _failed(child.returncode, failure.read(), lines)


def _read(stream: IO[str], lines: deque[str], echo: Echo) -> None:
    for line in stream:
        lines.append(line.rstrip("\n"))
        echo(lines[-1])


def _failed(code: int, failure: str, lines: Sequence[str]) -> BaseException:
    if not failure:
        if code == os.EX_TEMPFAIL:
            return SystemExit(code)
        return LaunchError(f"torchrun ended {ending(code)} before any rank did{_quoted(lines)}")
    found = json.loads(failure)
    rank, ended = found["rank"], found["exit_code"]
    text = f"rank {rank} ended {ending(ended)}"
    if ended == MISTAKE:
        return UserError(f"{text}{_quoted(lines)}")
    if ended == os.EX_TEMPFAIL:
        return SystemExit(ended)
    if ended == -signal.SIGKILL:
        text += " (the machine ran out of memory? lower micro_batch)"
    return LaunchError(f"{text}: the same command goes on from the last checkpoint{_quoted(lines)}")


def _quoted(lines: Sequence[str]) -> str:
    ours = [line for line in lines if OURS.match(line)][-TOLD_LINES:]
    return "\n  ".join(["; its last lines:", *ours]) if ours else ""


def _come_again() -> None:
    raise SystemExit(os.EX_TEMPFAIL)


def train_job(
    config: TrainJobConfig,
    processes: int,
    stage: str,
    uri: str,
    command: Sequence[str],
    where: Cluster | None = None,
    echo: Echo = to_stderr,
) -> None:
    """Run a command in the pods of a TrainJob until it is complete.

    The job is found again by its name, which comes from the artifact's URI: a running one is adopted, whoever
    started it; a failed one, and a complete one whose artifact is gone, is replaced.

    Args:
        processes: of all nodes together, as the training's configuration says.
        stage: of the artifact: sft or grpo.
        uri: where the artifact will be: its store, stage and action key.
        command: what every process runs; all that it names must be in the image or in a store.

    Raises:
        UserError: it cannot be made, was deleted, or failed by a mistake of the user's.
        LaunchError: it failed.
        SystemExit: 75, after SIGTERM.
    """
    if config.nodes * config.processes_per_node != processes:
        raise UserError(
            f"processes = {processes}, but nodes = {config.nodes} with processes_per_node = "
            f"{config.processes_per_node} are {config.nodes * config.processes_per_node}: make them the same"
        )
    where = where or cluster.connect(config.namespace, config.context)
    with on_sigterm(_come_again):
        job, adopted = _begin(where, config, trainjob.job(config, stage, uri, command), echo)
        over = threading.Event()
        logs = threading.Thread(target=_stream, args=(where, job, adopted, over, echo), daemon=True)
        logs.start()
        try:
            ended = _aside(_watch, where, job, echo)
            while not ended.done():
                futures.wait([ended], SIGNAL_S)
        except (KeyboardInterrupt, SystemExit):
            _leave(where, config, job, echo)
            raise
        finally:
            over.set()
        logs.join(LAST_LINES_S)
    if holds(ended.result(), "Failed"):
        raise _job_failed(where, ended.result())


def _aside(work: Callable[..., Object], *arguments: Any) -> futures.Future[Object]:
    """Work in a thread that does not keep the process from ending."""
    result = futures.Future[Object]()

    def run() -> None:
        try:
            result.set_result(work(*arguments))
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result


def _begin(where: Cluster, config: TrainJobConfig, wanted: Object, echo: Echo) -> tuple[Object, bool]:
    """The TrainJob, made or found, and whether it was found."""
    name, uri = wanted["metadata"]["name"], wanted["metadata"]["annotations"][ARTIFACT]
    with suppress(cluster.Conflict):  # its name is its content
        where.create(RUNTIME, trainjob.runtime(config))
    while True:
        found = where.get(TRAINJOB, name)
        if found is None:
            try:
                made = where.create(TRAINJOB, wanted)
            except cluster.Conflict:
                continue  # another launcher was quicker, or the answer to our own call was lost
            echo(f"TrainJob {name} in namespace {where.namespace}: created")
            return made, False
        makes = found["metadata"].get("annotations", {}).get(ARTIFACT, "nothing of ours")
        if makes != uri:
            raise UserError(
                f"TrainJob {name} in namespace {where.namespace} makes {makes}, not {uri}: delete it"
            )
        ended = next((one for one in ("Complete", "Failed") if holds(found, one)), "")
        leaving = "deletionTimestamp" in found["metadata"]
        if not ended and not leaving:
            echo(f"TrainJob {name} in namespace {where.namespace}: found, going on with it")
            return found, True
        echo(
            f"TrainJob {name}: {'is being deleted' if leaving else ended.lower()}; a new one takes its place"
        )
        where.delete(TRAINJOB, found)


def _watch(where: Cluster, job: Object, echo: Echo) -> Object:
    """Wait for the end; tell when it waits in a queue, when it goes on, and what its pods wait for."""
    name, told, waits = job["metadata"]["name"], "", set[str]()
    for seen in where.follow(TRAINJOB, name, uid(job)):
        if holds(seen, "Complete") or holds(seen, "Failed"):
            return seen
        now = "suspended, waiting for its turn" if holds(seen, "Suspended") else "admitted"
        if now != (told or "admitted"):
            echo(f"TrainJob {name}: {now}")
        told = now
        with suppress(ClusterError):  # that pods may not be seen is told where their log is read
            new = {text for pod in where.list(POD, trainjob.pods_of(name)) if (text := waits_for(pod))}
            for text in sorted(new - waits):
                echo(f"TrainJob {name}: {text}")
            waits |= new
    raise UserError(f"TrainJob {name} was deleted before its end: the same command makes it again")


def _leave(where: Cluster, config: TrainJobConfig, job: Object, echo: Echo) -> None:
    name = job["metadata"]["name"]
    if config.cancel_on_interrupt:
        echo(f"TrainJob {name}: cancelling; its processes may take {config.grace_s} s to save a checkpoint")
        where.delete(TRAINJOB, job)
    else:
        echo(
            f"TrainJob {name} goes on without this launcher, and the same command finds it again; to end it: "
            f"kubectl delete trainjob {name} -n {where.namespace}"
        )


def _stream(where: Cluster, job: Object, adopted: bool, over: threading.Event, echo: Echo) -> None:
    """Rank 0's output until the job is over: pod after pod, as a job that begins again has new ones."""
    name, seen = job["metadata"]["name"], set[str]()
    try:
        while True:
            last = over.is_set()
            for pod in where.list(POD, trainjob.pods_of(name, rank=0)):
                if uid(pod) in seen:
                    continue
                if seen:
                    echo(f"TrainJob {name}: begins again in Pod {pod['metadata']['name']}")
                tail = TAIL if adopted and not seen else None
                seen.add(uid(pod))
                for line in where.logs(pod, NODE, over.is_set, tail):
                    echo(line)
            if last:
                return
            over.wait(POLL_S)
    except (ClusterError, Unreachable) as error:  # training does not need its log to be seen
        echo(f"TrainJob {name}: its log is not shown: {error}")


def _job_failed(where: Cluster, job: Object) -> Exception:
    """Why a TrainJob failed, by the pod that ended first with a failure."""
    name, why = job["metadata"]["name"], condition(job, "Failed")
    text = f"TrainJob {name} failed ({why.get('reason')})"
    pods = where.list(POD, trainjob.pods_of(name))
    ends = sorted((end for pod in pods if (end := _end_of(pod))), key=lambda end: end[:2])
    if not ends:
        return LaunchError(f"{text}, and no pod tells why: {trainjob.remedy(None, str(why.get('reason')))}")
    *_, code, reason, rank, pod = ends[0]
    text += f": Pod {pod['metadata']['name']} ended" + (f" with exit code {code}" if code is not None else "")
    text += f" ({reason})" if reason else ""
    text += f", by rank {rank}" if rank is not None else ""
    text += f": {trainjob.remedy(code, reason if why.get('reason') != 'DeadlineExceeded' else why['reason'])}"
    try:
        lines = list(where.logs(pod, NODE, tail=KEPT_LINES))
    except (ClusterError, Unreachable) as error:
        lines = [f"unirg: its log cannot be read: {error}"]
    text += _quoted(lines)
    return UserError(text) if code == MISTAKE else LaunchError(text)


def _end_of(pod: Object) -> tuple[int, str, int | None, str, int | None, Object] | None:
    """(how likely a mere consequence, when, exit code, reason, rank, pod) of a pod that failed, else None."""
    status = pod.get("status", {})
    ended = terminated(pod, NODE)
    code = ended.get("exitCode")
    if status.get("phase") != "Failed" and not code:
        return None
    disruption = condition(pod, "DisruptionTarget")
    reason = str(status.get("reason") or disruption.get("reason") or ended.get("reason") or "")
    try:
        rank = json.loads(ended.get("message", ""))["rank"]
    except (ValueError, KeyError, TypeError):
        rank = None
    likely = consequence(code) if code is not None and reason in ("", "Error") else 0
    return likely, str(ended.get("finishedAt", "")), code, reason, rank, pod
