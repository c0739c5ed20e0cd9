"""A whole run of the pipeline on an institution's data, and no identifier of a patient left by it anywhere.

The data hold planted identifiers, canaries. Artifacts go to a real S3 server, telemetry to a receiver here,
MLflow's records to SQLite. The run is interrupted once, goes to its end, and is then given again; after that
everything that it left anywhere is searched.
"""

from __future__ import annotations

import base64
import json
import math
import os
import re
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests import runs
from tests.conftest import S3
from tests.pipelines import site
from unirg.cohort.corpora.institution import SITE_KEY_VARIABLE
from unirg.cohort.intake import NO_SECTIONS
from unirg.cohort.reader import INDEX
from unirg.cohort.shards import UNREADABLE

VERBS = {
    "stage",
    "train.weights",
    "train.base",
    "train.sft",
    "train.grpo",
    "serve",
    "score",
    "evaluate",
    "report",
}

pytestmark = [pytest.mark.s3, pytest.mark.timeout(900)]


class Collector(ThreadingHTTPServer):
    """An OTLP/HTTP receiver that keeps what it is sent."""

    def __init__(self) -> None:
        self.received: list[tuple[str, bytes]] = []
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                received.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    def bodies(self, signal: str) -> list[bytes]:
        return [body for path, body in self.received if path == f"/v1/{signal}"]


SYSTEMS = [
    *("untrained", "sft", "grpo step 1", "grpo step 2"),
    *("sft, images permuted", "sft, sampled", "grpo step 1, sampled", "grpo step 2, sampled"),
    "grpo step 2, with priors",
    *("most-frequent-report", "copy-prior"),
]
AGAIN_S = 90.0
"""What a run with nothing to do may take on a busy machine; on an idle one it takes about 12 s."""


@dataclass(frozen=True)
class Run:
    """The lives of a run, and everything that it left."""

    interrupted: runs.Finished
    kept: dict[str, bytes]
    """What was in the bucket then."""
    whole: runs.Finished
    again: runs.Finished
    folder: Path
    """Where it ran: logs, MLflow, KFP's files, local copies, temporary files. The data lie elsewhere."""
    objects: dict[str, bytes]
    """What is in the bucket."""
    rewritten: set[str]
    """Keys that the last life wrote."""
    telemetry: Collector

    @property
    def output(self) -> str:
        return self.interrupted.output + self.whole.output + self.again.output

    @property
    def page(self) -> Path:
        """The report."""
        found = re.search(r"^report +(/\S+\.html)$", self.whole.output, re.MULTILINE)
        assert found is not None, self.whole.output
        return Path(found[1])


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return site.write(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def run(s3: S3, collector: Collector, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder, bucket = tmp_path_factory.mktemp("run"), s3.bucket()
    environment = {**os.environ, **s3.environment, SITE_KEY_VARIABLE: site.SITE_KEY}
    arguments = ["--corpus", "institution", "--data", str(table), "--store", f"s3://{bucket}/unirg"]
    with runs.demo(folder, *arguments, environment=environment) as demo:
        runs.reaches(demo, "train-2")  # SFT
        demo.signal_group(signal.SIGINT)
        code, left = demo.wait(30), demo.wait_until_gone()
        interrupted = runs.Finished(code, demo.output, demo.seconds, frozenset(), tuple(left.values()))
    kept, _ = content(s3, bucket)
    told = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}"}
    whole = runs.finished(folder, *arguments, environment=environment | told)
    objects, before = content(s3, bucket)
    again = runs.finished(folder, *arguments, environment=environment)
    objects, after = content(s3, bucket)
    rewritten = {key for key in after if after[key] != before.get(key)}
    return Run(interrupted, kept, whole, again, folder, objects, rewritten, collector)


def content(s3: S3, bucket: str) -> tuple[dict[str, bytes], dict[str, object]]:
    """The objects of a bucket, and when each was written."""
    client, objects, times = s3.client(), dict[str, bytes](), dict[str, object]()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for entry in page.get("Contents", []):
            objects[entry["Key"]] = client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()
            times[entry["Key"]] = entry["LastModified"]
    return objects, times


def test_the_whole_pipeline_runs_on_an_institutions_data_with_its_store_on_s3(run: Run) -> None:
    assert run.whole.exit_code == 0, run.output
    assert not run.whole.left
    made = {key.split("/")[1] for key in run.objects if key.endswith("/manifest.json")}
    assert made == {"cohort", "weights", "base", "sft", "grpo", "serve", "score", "evaluate", "report"}


def test_the_search_would_find_a_canary_in_any_case_and_encoding(table: Path) -> None:
    spellings = ["QUACKENBUSH", "zebulon", "VUKOVIĆ", "krešimir", site.PATIENTS[0].mrn, site.SITE_KEY.upper()]
    for spelling in spellings:
        for data in (
            spelling.encode(),
            spelling.encode("utf-16-le"),
            spelling.encode().hex().encode(),
            repr({"x": spelling}).encode("ascii", "backslashreplace"),
            base64.b64encode(b"some words before " + spelling.encode() + b" and more after"),
        ):
            assert site.leaks(data), spelling
    assert site.leaks(table.read_bytes())
    assert not site.leaks(os.urandom(100_000))


def test_no_canary_is_on_the_terminal(run: Run) -> None:
    assert not site.leaks(run.output.encode())


def test_no_canary_is_in_any_log_parameter_metrics_store_or_local_copy(run: Run, tmp_path: Path) -> None:
    files = site.below(run.folder)
    for wanted in ("kfp.log", "mlflow.db", "executor_output.json", "model.safetensors"):
        assert [name for name in files if name.endswith(wanted)], f"{wanted} was not among the files searched"
    assert site.leaking(files, tmp_path) == {}


def test_no_canary_is_in_any_object_key_or_object(run: Run, tmp_path: Path) -> None:
    for wanted in (".parquet", "report.html", "report.json", "manifest.json", "resolved_config.json"):
        assert [key for key in run.objects if key.endswith(wanted)], f"{wanted} is not among the objects"
    assert site.leaking(run.objects, tmp_path) == {}


def test_no_canary_is_in_telemetry(run: Run) -> None:
    assert {path for path, _ in run.telemetry.received} >= {"/v1/traces", "/v1/metrics"}
    assert [path for path, body in run.telemetry.received if site.leaks(body)] == []


def test_no_image_path_of_the_institution_is_in_anything(run: Run) -> None:
    files = (
        site.below(run.folder)
        | run.objects
        | {f"telemetry {n}": b for n, (_, b) in enumerate(run.telemetry.received)}
    )
    assert [name for name, data in files.items() if b"/QX" in data] == []


def test_the_texts_arrived_so_that_the_search_had_something_to_find(run: Run, tmp_path: Path) -> None:
    shards = [data for key, data in run.objects.items() if "/shards/" in key]
    texts = []
    for data in shards:
        (tmp_path / "shard.parquet").write_bytes(data)
        texts += pq.read_table(tmp_path / "shard.parquet", columns=["impression"])["impression"].to_pylist()
    assert len(texts) == 12
    assert all("no acute disease" in text and "[removed]" in text for text in texts)


def test_faulty_rows_are_counted_by_a_reason_that_names_no_value(run: Run) -> None:
    (cohort,) = (data for key, data in run.objects.items() if key.endswith("/" + INDEX))
    assert b'"dropped"' in cohort
    for reason in (UNREADABLE, NO_SECTIONS, "invalid acquired_at", "unsafe image path"):
        assert f'"{reason}": 1'.encode() in cohort, reason


def test_one_trace_spans_the_run_with_every_verb_in_it(run: Run) -> None:
    spans = [
        span
        for body in run.telemetry.bodies("traces")
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert len({span.trace_id for span in spans}) == 1
    names = [span.name for span in spans]
    assert set(names) >= VERBS | {"pipeline.train"}
    assert names.count("train.grpo") == 2
    (root,) = (span for span in spans if not span.parent_span_id)
    assert root.name == "pipeline.train"
    known = {span.span_id for span in spans}
    assert all(span.parent_span_id in known for span in spans if span is not root)


def test_every_metric_has_a_unit(run: Run) -> None:
    metrics = [
        metric
        for body in run.telemetry.bodies("metrics")
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    ]
    assert {metric.name for metric in metrics} >= {"unirg.studies", "unirg.tokens", "unirg.score.latency"}
    assert [metric.name for metric in metrics if not metric.unit] == []


def test_interrupted_it_says_so_keeps_what_is_done_and_leaves_nothing_running(run: Run) -> None:
    assert run.interrupted.exit_code == 130, run.interrupted.output
    said = "demo: interrupted; finished work is kept, the same command goes on"
    assert run.interrupted.output.rstrip().endswith(said)
    assert "Traceback" not in run.interrupted.output
    assert not run.interrupted.left
    manifests = {key: data for key, data in run.kept.items() if key.endswith("/manifest.json")}
    assert {key.split("/")[1] for key in manifests} >= {"cohort", "base"}
    assert manifests.items() <= run.objects.items()


def test_every_system_stands_in_the_headline_with_intervals(run: Run) -> None:
    _, found, table = run.whole.output.partition("held-out studies")
    assert found
    assert "Composite reward" in table
    for system in SYSTEMS:
        number = r"-?\d+\.\d{3} \[-?\d+\.\d{3}, -?\d+\.\d{3}\]"
        assert re.search(rf"^{re.escape(system)}  +{number}  +{number}", table, re.MULTILINE), system
    assert "Errors are counted by: offline-judge" in table


def test_progress_names_each_task_as_people_call_it(run: Run) -> None:
    finished = [name for name, _ in runs.COMMITTED.findall(run.whole.output)]
    assert len(finished) == len(set(finished))
    scored = {name.removeprefix("score ") for name in finished if name.startswith("score ")}
    assert scored == set(SYSTEMS) - {"most-frequent-report", "copy-prior"}
    assert re.search(r"score: \d+ studies in ", run.whole.output)


def test_the_demo_ends_with_where_the_report_lies_and_how_to_open_mlflow(run: Run) -> None:
    assert run.page.is_file()
    command = re.search(
        r"^mlflow +.*mlflow ui --backend-store-uri sqlite:///(\S+) ", run.whole.output, re.MULTILINE
    )
    assert command is not None
    assert Path(command[1]).read_bytes().startswith(b"SQLite format 3")
    assert re.search(
        r"open http://127\.0\.0\.1:5000/#/experiments/\w+/runs/\w{32}$", run.whole.output, re.MULTILINE
    )


class Page(HTMLParser):
    """What is in a page: open tags, and what it would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: dict[str, int] = {}
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1
        if tag not in ("meta", "link", "img", "br", "hr", "input", "col", "source"):
            self.open.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href") and value and ":" in value]

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag


def test_the_report_is_one_well_formed_page_with_radiographs_that_loads_nothing(run: Run) -> None:
    page = Page()
    page.feed(run.page.read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    assert page.seen["table"] >= 1
    assert page.seen["img"] >= 1
    assert [source for source in page.loads if not source.startswith("data:")] == []


def test_the_reports_numbers_are_there_as_json(run: Run) -> None:
    (data,) = (data for key, data in run.objects.items() if key.endswith("/report.json"))
    text = json.dumps(json.loads(data))
    assert all(json.dumps(system) in text for system in SYSTEMS)


def test_kfps_ui_is_given_the_evaluations_numbers_and_the_reports_page(run: Run) -> None:
    shown: dict[str, dict[str, dict[str, Any]]] = {}
    for path in sorted(run.folder.rglob("executor_output.json")):
        found = json.loads(path.read_text()).get("artifacts", {})
        shown[path.parts[-2]] = {name: each["artifacts"][0] for name, each in found.items()}
    metrics = shown["evaluate"]["metrics"]["metadata"]
    assert {name.split("/")[0] for name in metrics} >= set(SYSTEMS)
    assert all(math.isfinite(value) for value in metrics.values())
    assert Path(shown["report"]["html"]["uri"]).read_bytes() == run.page.read_bytes()
    for task in ("evaluate", "report"):
        assert Path(shown[task]["html"]["uri"]).read_text().startswith("<!doctype html>")
        assert Path(shown[task]["markdown"]["uri"]).read_text().startswith("# ")


def test_given_again_it_repeats_nothing_and_starts_no_model_server(run: Run) -> None:
    assert run.again.exit_code == 0, run.again.output
    assert {key for key in run.rewritten if "/.work/" not in key} == set()
    assert runs.PREDICTOR in run.whole.servers  # so that its absence below says something
    assert runs.PREDICTOR not in run.again.servers
    assert " steps in " not in run.again.output
    assert run.again.seconds < AGAIN_S
    assert numbers(run.again) == numbers(run.whole)


def numbers(run: runs.Finished) -> str:
    return run.output[run.output.index("held-out studies") : run.output.index("\nlogs ")]
