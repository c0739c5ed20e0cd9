"""What a run tells while it works: progress lines, OpenTelemetry traces and metrics, clean failures.

Spans and metrics leave the process only when `OTEL_EXPORTER_OTLP_ENDPOINT` is set. No text of a report
and no identifier of a patient is ever in an attribute, a log line or an error: attributes are numbers,
booleans and short names of ours, and the message of an unexpected exception (which may quote a report) is
withheld unless `UNIRG_DEBUG=1`.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from opentelemetry import context, metrics, propagate, trace
from opentelemetry.trace import Span, StatusCode

from unirg.errors import UserError

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

Attribute = str | int | float | bool
TRACEPARENT = "TRACEPARENT"
"""Environment variable with the trace that a process belongs to (OpenTelemetry's name for it)."""
_MAX_TEXT = 160


DISK_FULL = (
    "No space left on device",
    "File too large",
    "disk is full",
    "inline_container.cc",
    "PytorchStreamWriter",
)
"""How safetensors and tokenizers, SQLite, and `torch.save` (the last two) say it, with no error number."""


class InternalError(Exception):
    """An unexpected failure of ours: where it happened and of what type, without its message."""


NOISY = ("httpx", "httpcore", "openai", "fsspec", "s3fs", "botocore", "aiobotocore", "kfp")
"""Libraries whose log lines name every request or every path that they open."""


@functools.cache
def _quiet() -> None:
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


@functools.cache
def _export() -> None:
    """Send spans and metrics to the OTLP endpoint of the environment, once per process."""
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": "unirg"})
    tracing = TracerProvider(resource=resource)
    tracing.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(tracing)
    reader = PeriodicExportingMetricReader(OTLPMetricExporter())
    metrics.set_meter_provider(MeterProvider(metric_readers=[reader], resource=resource))


@contextmanager
def span(name: str, **attributes: Attribute) -> Iterator[Span]:
    """A span around a piece of work, child of the current one or of `join_trace`'s."""
    _export()
    parent = context.get_current()
    if not trace.get_current_span(parent).get_span_context().is_valid and os.environ.get(TRACEPARENT):
        parent = propagate.extract({"traceparent": os.environ[TRACEPARENT]})
    tracer = trace.get_tracer("unirg")
    with tracer.start_as_current_span(
        name, parent, attributes=_safe(attributes), record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield current
        except BaseException as error:
            current.set_status(StatusCode.ERROR, type(error).__name__)
            raise


def _safe(attributes: dict[str, Attribute]) -> dict[str, Attribute]:
    return {k: v[:_MAX_TEXT] if isinstance(v, str) else v for k, v in attributes.items()}


def join_trace(traceparent: str) -> None:
    """Make this process's spans, and those of the processes it starts, part of a trace begun elsewhere."""
    if traceparent:
        os.environ[TRACEPARENT] = traceparent


def traceparent() -> str:
    """The current span's W3C context, to hand to another process; empty where nothing is traced."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier.get("traceparent", "")


@functools.cache
def _counter(name: str, unit: str) -> metrics.Counter:
    return metrics.get_meter("unirg").create_counter(name, unit=unit)


@functools.cache
def _histogram(name: str, unit: str) -> metrics.Histogram:
    return metrics.get_meter("unirg").create_histogram(name, unit=unit)


def count(name: str, amount: int = 1, unit: str = "1", **attributes: Attribute) -> None:
    """Add to a counter such as `unirg.studies`."""
    _export()
    _counter(name, unit).add(amount, _safe(attributes))


def record(name: str, value: float, unit: str = "s", **attributes: Attribute) -> None:
    """Add a value to a histogram such as `unirg.score.latency`."""
    _export()
    _histogram(name, unit).record(value, _safe(attributes))


def verb(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Wrap a stage's public function: a span around it, and failures that are safe to print."""

    def wrap(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            _quiet()
            with span(name):
                try:
                    return function(*args, **kwargs)
                except Exception as error:
                    raise safe_error(error) from None

        return run

    return wrap


def safe_error(error: Exception) -> Exception:
    """An exception that can be printed: a `UserError` as it is, a full disk explained, others withheld."""
    if os.environ.get("UNIRG_DEBUG") == "1" or isinstance(error, InternalError):
        return error
    if isinstance(error, UserError):
        error.__cause__ = error.__context__ = None
        return error
    if _disk_is_full(error):
        return UserError("the disk is full: free some space and run the same command again, which goes on")
    way = traceback.extract_tb(error.__traceback__)
    ours = [f for f in way[:-1] if os.path.isabs(f.filename) and "site-packages" not in f.filename]
    frames = [*ours[-3:], *way[-1:]]  # a library's own frames would hide what of ours called it
    where = " <- ".join(f"{frame.filename}:{frame.lineno} ({frame.name})" for frame in reversed(frames))
    return InternalError(
        f"{type(error).__name__} at {where}; its message may quote a report, so it is withheld: "
        "set UNIRG_DEBUG=1 and run again to see it"
    )


def _disk_is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        if any(words in str(error) for words in DISK_FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Progress:
    """Lines such as `stage: 480 of 1600 studies (30%), 52/s, 21 s to go`, a few seconds apart.

    Lines, not a redrawn bar: KFP and Kubernetes keep logs by line.
    """

    def __init__(self, what: str, total: int, unit: str, done: int = 0, every_s: float = 5.0) -> None:
        self.what, self.total, self.unit, self.every_s = what, total, unit, every_s
        self.done = self.begun_with = done
        self.started = self.printed = time.monotonic()
        if done:
            to_stderr(f"{self.what}: going on at {done} of {total} {unit}")

    def advance(self, amount: int = 1, note: str = "") -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.printed >= self.every_s and self.done < self.total:
            self.printed = now
            rate = (self.done - self.begun_with) / (now - self.started)
            left = (self.total - self.done) / rate if rate else float("inf")
            share = self.done / self.total
            text = f"{self.what}: {self.done} of {self.total} {self.unit} ({share:.0%}), {rate:.3g}/s"
            text += f", {left:.0f} s to go"
            to_stderr(f"{text}  {note}" if note else text)

    def passed(self, amount: int) -> None:
        """So many were done before, as is found on the way."""
        self.done += amount
        self.begun_with += amount

    def finish(self, note: str = "") -> None:
        seconds = time.monotonic() - self.started
        text = f"{self.what}: {self.done} {self.unit} in {seconds:.1f} s"
        to_stderr(f"{text}  {note}" if note else text)


def progress(items: Iterable[T], what: str, total: int, unit: str) -> Iterator[T]:
    """Yield the items, telling how far it is."""
    told = Progress(what, total, unit)
    for item in items:
        yield item
        told.advance()
    told.finish()
