"""Telemetry: one trace over processes, progress that a log can keep, failures that show no content."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from pydantic import BaseModel

from tests.canary import CANARY, everything_shown
from unirg import telemetry
from unirg.errors import UserError
from unirg.telemetry import InternalError, Progress, safe_error, verb

ROOT = Path(__file__).parent.parent


# Failures


class _Unhidden(BaseModel):
    age: int


def _decode() -> None:
    f"{CANARY} \ud800".encode()


def _arrow() -> None:
    pa.array([CANARY], pa.string()).cast(pa.int32())


def _attribute() -> None:
    getattr(CANARY, CANARY)


def _nested() -> None:
    try:
        raise KeyError(CANARY)
    except KeyError as error:
        raise RuntimeError(f"while reading {CANARY}") from error


def _noted() -> None:
    error = ValueError("x")
    error.add_note(CANARY)
    raise error


def _group() -> None:
    raise ExceptionGroup(CANARY, [ValueError(CANARY)])


UNEXPECTED: list[Callable[[], object]] = [
    lambda: os.environ[CANARY],
    lambda: int(CANARY),
    lambda: _Unhidden(age=CANARY),  # type: ignore[arg-type]
    lambda: json.loads(CANARY),
    lambda: open(f"/nowhere/{CANARY}"),  # noqa: SIM115
    lambda: subprocess.run(["false", CANARY], check=True),
    _decode,
    _arrow,
    _attribute,
    _nested,
    _noted,
    _group,
]


@pytest.mark.parametrize("fail", UNEXPECTED)
def test_an_unexpected_failure_says_where_and_what_but_not_its_message(fail: Callable[[], object]) -> None:
    with pytest.raises(InternalError) as shown:
        verb("stage")(fail)()
    assert "MRN" not in everything_shown(shown.value)
    assert "UNIRG_DEBUG=1" in str(shown.value)
    assert f"{__file__}:" in str(shown.value)


def test_an_error_that_was_never_raised_is_withheld_too() -> None:
    assert CANARY not in everything_shown(safe_error(ValueError(CANARY)))


def test_debugging_shows_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIRG_DEBUG", "1")
    with pytest.raises(ValueError, match=CANARY):
        verb("stage")(int)(CANARY)


def test_a_users_mistake_passes_but_without_what_caused_it() -> None:
    def fail() -> None:
        try:
            raise ValueError(CANARY)
        except ValueError as error:
            raise UserError("correct the path") from error

    with pytest.raises(UserError, match=r"^correct the path$") as shown:
        verb("stage")(fail)()
    assert CANARY not in everything_shown(shown.value)


def test_verbs_within_verbs_withhold_once() -> None:
    with pytest.raises(InternalError) as shown:
        verb("outer")(verb("inner")(int))(CANARY)
    assert str(shown.value).count("UNIRG_DEBUG") == 1


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_verb_lets_an_interruption_through(stop: type[BaseException]) -> None:
    def fail() -> None:
        raise stop

    with pytest.raises(stop):
        verb("stage")(fail)()


def test_a_verb_gives_back_what_its_function_does() -> None:
    @verb("add")
    def add(a: int, *, b: int) -> int:
        """Adds."""
        return a + b

    assert add(1, b=2) == 3
    assert (add.__name__, add.__doc__) == ("add", "Adds.")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        Exception("database or disk is full"),
    ],
    ids=["errno", "quota", "safetensors", "torch.save", "torch.save, closing", "sqlite"],
)
def test_a_full_disk_is_said_whichever_library_meets_it(error: Exception) -> None:
    for met in (error, _caused_by(error)):
        shown = safe_error(met)
        assert isinstance(shown, UserError)
        assert "the disk is full: free some space and run the same command again" in str(shown)


def _caused_by(error: Exception) -> Exception:
    outer = RuntimeError("saving failed")
    outer.__cause__ = error
    return outer


# Traces and metrics


class Receiver(ThreadingHTTPServer):
    """An OpenTelemetry collector's HTTP endpoint that keeps what it gets."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receive)
        self.received: list[tuple[str, bytes]] = []

    @property
    def spans(self) -> dict[str, Any]:
        found = {}
        for path, body in self.received:
            if path == "/v1/traces":
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for scope in resource.scope_spans:
                        found.update({span.name: span for span in scope.spans})
        return found

    @property
    def metrics(self) -> dict[str, Any]:
        found = {}
        for path, body in self.received:
            if path == "/v1/metrics":
                for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                    for scope in resource.scope_metrics:
                        found.update({metric.name: metric for metric in scope.metrics})
        return found


class _Receive(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def collected() -> Iterator[Receiver]:
    """What a run of two processes sends: the parent's pipeline, the child's failing stage."""
    with Receiver() as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{receiver.server_port}"
        environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": url, "CANARY": CANARY}
        subprocess.run([sys.executable, "-c", PARENT], cwd=ROOT, env=environment, timeout=60, check=True)
        yield receiver
        receiver.shutdown()


CHILD = """
import os
from unirg import telemetry
from unirg.errors import UserError

canary = os.environ.pop("CANARY")

@telemetry.verb("stage")
def stage(report, path):
    telemetry.count("unirg.studies", 3, stage="cohort")
    telemetry.record("unirg.score.latency", 0.25, retried=False)
    with telemetry.span("decode", studies=3, note="x" * 1000):
        {}[report]

try:
    stage(canary, path=canary)
except telemetry.InternalError:
    pass
"""
PARENT = f"""
import os, subprocess, sys
from unirg import telemetry

with telemetry.span("pipeline", epochs=1.5, real=True):
    environment = {{**os.environ, telemetry.TRACEPARENT: telemetry.traceparent()}}
    subprocess.run([sys.executable, "-c", '''{CHILD}'''], env=environment, check=True)
    with telemetry.span("report"):
        pass
telemetry.join_trace("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
with telemetry.span("joined"):
    pass
"""


def test_spans_of_two_processes_form_one_trace(collected: Receiver) -> None:
    spans = collected.spans
    assert set(spans) == {"pipeline", "stage", "decode", "report", "joined"}
    parents = {name: spans[name].parent_span_id for name in spans}
    assert parents["pipeline"] == b""
    assert parents["stage"] == parents["report"] == spans["pipeline"].span_id
    assert parents["decode"] == spans["stage"].span_id
    assert len({spans[name].trace_id for name in ("pipeline", "stage", "decode", "report")}) == 1


def test_a_process_can_join_a_trace_begun_elsewhere(collected: Receiver) -> None:
    joined = collected.spans["joined"]
    assert joined.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert joined.parent_span_id.hex() == "b7ad6b7169203331"


def test_attributes_are_numbers_and_short_names(collected: Receiver) -> None:
    kept = {a.key: a.value for span in collected.spans.values() for a in span.attributes}
    assert kept["epochs"].double_value == 1.5
    assert kept["real"].bool_value is True
    assert kept["studies"].int_value == 3
    assert kept["note"].string_value == "x" * 160


def test_a_failed_span_tells_the_type_of_the_error_alone(collected: Receiver) -> None:
    status = {name: (span.status.code, span.status.message) for name, span in collected.spans.items()}
    assert status["decode"] == (2, "KeyError")
    assert status["stage"] == (2, "InternalError")
    assert status["pipeline"][0] != 2
    assert all(not span.events for span in collected.spans.values())


def test_counters_and_histograms_arrive(collected: Receiver) -> None:
    studies = collected.metrics["unirg.studies"].sum.data_points[0]
    assert studies.as_int == 3
    assert studies.attributes[0].value.string_value == "cohort"
    latency = collected.metrics["unirg.score.latency"]
    assert latency.unit == "s"
    assert latency.histogram.data_points[0].sum == 0.25


def test_nothing_sent_holds_content(collected: Receiver) -> None:
    assert len(collected.received) >= 3
    for path, body in collected.received:
        assert CANARY.encode() not in body, path
        assert b"MRN" not in body, path


def test_without_an_endpoint_nothing_is_traced_and_nothing_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.delenv(telemetry.TRACEPARENT, raising=False)
    with telemetry.span("alone", studies=1):
        telemetry.count("unirg.studies")
        telemetry.record("unirg.score.latency", 1.0)
        assert telemetry.traceparent() == ""
    telemetry.join_trace("")
    assert telemetry.TRACEPARENT not in os.environ


def test_a_trace_passes_through_a_process_that_sends_nothing_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    monkeypatch.setenv(telemetry.TRACEPARENT, parent)
    with telemetry.span("between"):
        assert telemetry.traceparent() == parent


# Progress


class Clock:
    """A clock that goes on when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(telemetry, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def test_progress_tells_what_how_far_how_fast_and_how_long_to_go(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    told = Progress("stage", 1600, "studies")
    clock.now += 10
    told.advance(480)
    assert capsys.readouterr().err == "stage: 480 of 1600 studies (30%), 48/s, 23 s to go\n"
    clock.now += 10
    told.advance(320, note="loss 0.5")
    assert capsys.readouterr().err == "stage: 800 of 1600 studies (50%), 40/s, 20 s to go  loss 0.5\n"
    clock.now += 5
    told.advance(800)
    told.finish("reward 0.3")
    assert capsys.readouterr().err == "stage: 1600 studies in 25.0 s  reward 0.3\n"


def test_lines_come_seconds_apart(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    told = Progress("score", 1000, "studies", every_s=5)
    for _ in range(100):
        clock.now += 0.5
        told.advance()
    assert len(capsys.readouterr().err.splitlines()) == 10


def test_work_found_done_counts_as_done_but_not_as_fast(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    told = Progress("sft", 100, "steps", done=60)
    assert capsys.readouterr().err == "sft: going on at 60 of 100 steps\n"
    clock.now += 10
    told.advance(20)
    assert capsys.readouterr().err == "sft: 80 of 100 steps (80%), 2/s, 10 s to go\n"


def test_no_progress_yet_is_no_division_by_zero(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    told = Progress("sft", 10, "steps")
    clock.now += 10
    told.advance(0)
    assert capsys.readouterr().err == "sft: 0 of 10 steps (0%), 0/s, inf s to go\n"
    Progress("stage", 0, "studies").finish()
    assert capsys.readouterr().err == "stage: 0 studies in 0.0 s\n"


def test_progress_yields_every_item_and_says_the_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(telemetry.progress(iter("abc"), "read", 3, "letters")) == ["a", "b", "c"]
    assert capsys.readouterr().err == "read: 3 letters in 0.0 s\n"
