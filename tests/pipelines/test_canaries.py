"""No identifier of a patient leaves the institution's folder in a whole run: the canaries of issue 2.

One run of the pipeline on planted data, with its artifacts on a real S3 server, its telemetry caught here
and MLflow on SQLite; then everything that it left anywhere is searched.
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

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
from unirg.study import keyed_id

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

pytestmark = [pytest.mark.s3, pytest.mark.timeout(600)]


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


@dataclass(frozen=True)
class Run:
    """A finished run and everything that it left."""

    exit_code: int
    output: str
    folder: Path
    """Where it ran: logs, MLflow, KFP's files, local copies, temporary files. The data lie elsewhere."""
    objects: dict[str, bytes]
    """What is in the bucket."""
    telemetry: Collector


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
    environment = {
        **os.environ,
        **s3.environment,
        SITE_KEY_VARIABLE: site.SITE_KEY,
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
    }
    arguments = ["--corpus", "institution", "--data", str(table), "--store", f"s3://{bucket}/unirg"]
    with runs.demo(folder, *arguments, environment=environment) as demo:
        code = demo.wait(550)
        output = demo.output
    client = s3.client()
    objects = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for entry in page.get("Contents", []):
            found = client.get_object(Bucket=bucket, Key=entry["Key"])
            objects[entry["Key"]] = found["Body"].read()
    return Run(code, output, folder, objects, collector)


def searched(data: bytes, folder: Path) -> list[bytes]:
    """Canaries in a file's bytes and, for Parquet, in its values."""
    found = site.leaks(data)
    if data.startswith(b"PAR1"):
        copy = folder / "searched.parquet"
        copy.write_bytes(data)
        found += site.leaks(repr(pq.read_table(copy).to_pylist()).encode())
    return found


def leaking(files: dict[str, bytes], folder: Path) -> dict[str, set[bytes]]:
    found = {
        name: set(searched(data, folder)) | set(site.leaks(name.encode())) for name, data in files.items()
    }
    return {name: canaries for name, canaries in found.items() if canaries}


def below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_whole_pipeline_runs_on_an_institutions_data_with_its_store_on_s3(run: Run) -> None:
    assert run.exit_code == 0, run.output
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
    files = below(run.folder)
    for wanted in ("kfp.log", "mlflow.db", "executor_output.json", "model.safetensors"):
        assert [name for name in files if name.endswith(wanted)], f"{wanted} was not among the files searched"
    assert leaking(files, tmp_path) == {}


def test_no_canary_is_in_any_object_key_or_object(run: Run, tmp_path: Path) -> None:
    for wanted in (".parquet", "report.html", "report.json", "manifest.json", "resolved_config.json"):
        assert [key for key in run.objects if key.endswith(wanted)], f"{wanted} is not among the objects"
    assert leaking(run.objects, tmp_path) == {}


def test_no_canary_is_in_telemetry(run: Run) -> None:
    assert {path for path, _ in run.telemetry.received} >= {"/v1/traces", "/v1/metrics"}
    assert [path for path, body in run.telemetry.received if site.leaks(body)] == []


def test_no_image_path_of_the_institution_is_in_anything(run: Run) -> None:
    files = (
        below(run.folder)
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


def stage(folder: Path, *overrides: str, recipe: str = "toy_real/stage") -> subprocess.CompletedProcess[str]:
    """`unirg stage` with the site's key, its store in `folder`."""
    command = [
        sys.executable,
        "-m",
        "unirg.cli",
        "stage",
        "--store",
        str(folder / "store"),
        "--recipe",
        recipe,
    ]
    return subprocess.run(
        [*command, "--", *overrides],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, SITE_KEY_VARIABLE: site.SITE_KEY},
    )


def test_a_corpus_of_faulty_rows_alone_is_refused_without_a_canary(tmp_path: Path) -> None:
    table = site.write_table(tmp_path / "studies.csv", site.faulty(tmp_path))
    ended = stage(tmp_path, "corpus=institution", f"data={table}")
    said = ended.stdout + ended.stderr
    assert ended.returncode == 2
    assert "no study is left to stage" in said
    assert f"1 {NO_SECTIONS}" in said
    assert not site.leaks(said.encode())
    assert "Traceback" not in said
    assert leaking(below(tmp_path / "store"), tmp_path) == {}


def test_a_row_is_dropped_under_its_keyed_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unirg.cohort.corpora.institution import Institution

    table = site.write_table(tmp_path / "studies.csv", site.faulty(tmp_path))
    monkeypatch.setenv(SITE_KEY_VARIABLE, site.SITE_KEY)
    records = list(Institution.from_environment(str(table)).records())
    accessions = [site.PATIENTS[n].accession(5 + n) for n in range(4)]
    assert [record.study_id for record in records] == [
        keyed_id(bytes.fromhex(site.SITE_KEY), "study", accession) for accession in accessions
    ]
    assert not site.leaks(repr(records[2:]).encode())  # the dropped ones


def test_a_missing_directory_is_refused_with_what_to_do(tmp_path: Path) -> None:
    ended = stage(tmp_path, "corpus=iu_xray", f"data={tmp_path}/nowhere")
    assert ended.returncode == 2
    assert "nowhere" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "store" / "cohort").exists()


def test_an_institutions_missing_table_is_refused_without_its_path(tmp_path: Path) -> None:
    ended = stage(tmp_path, "corpus=institution", f"data={tmp_path}/{site.PATIENTS[0].mrn}/studies.csv")
    assert ended.returncode == 2
    assert "its table does not exist" in ended.stderr
    assert not site.leaks((ended.stdout + ended.stderr).encode())


def test_a_wrong_key_in_a_recipe_is_refused_with_the_nearest_valid_one(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("corpus: phantom\nstudeis: 5\n")
    ended = stage(tmp_path, recipe=str(recipe))
    assert ended.returncode == 2
    assert "unknown key studeis: did you mean studies?" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_a_missing_site_key_is_refused_before_anything_is_read(tmp_path: Path, table: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != SITE_KEY_VARIABLE}
    command = [sys.executable, "-m", "unirg.cli", "stage", "--store", str(tmp_path / "store"), "--"]
    ended = subprocess.run(
        [*command, "corpus=institution", f"data={table}"],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert ended.returncode == 2
    assert "openssl rand -hex 32" in ended.stderr
    assert not site.leaks(ended.stderr.encode())
