"""What many tests share: S3 servers, real and pretended, a PostgreSQL, and how Hypothesis judges."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests import postgres_server, s3_server

# How long an example takes says how busy the machine is.
settings.register_profile("unirg", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unirg")

# The main pytest process sets these two for itself and its xdist workers, so that all share one server,
# which is started by the first test that asks and ends with the main process, however that ends.
SERVER_DIR = "UNIRG_TEST_S3_DIR"
SERVER_OWNER = "UNIRG_TEST_S3_OWNER"


def _is_worker() -> bool:
    return "PYTEST_XDIST_WORKER" in os.environ


def pytest_configure(config: pytest.Config) -> None:
    # A run begun in the background ignores Ctrl-C, and so would every process that a test interrupts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not _is_worker():
        os.environ[SERVER_DIR] = os.path.join(tempfile.gettempdir(), f"unirg-s3-{uuid.uuid4().hex}")
        os.environ[SERVER_OWNER] = str(os.getpid())


def pytest_unconfigure(config: pytest.Config) -> None:
    if not _is_worker():
        s3_server.stop(Path(os.environ[SERVER_DIR]))


@dataclass(frozen=True)
class S3:
    """An S3 server and the key of a user who may create buckets there."""

    endpoint_url: str
    access_key: str
    secret_key: str

    @property
    def environment(self) -> dict[str, str]:
        """What `unirg.storage` and botocore read; pass it to a subprocess, or set it with `monkeypatch`."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def client(self, secret_key: str | None = None) -> Any:
        """A boto3 client; another secret key than the right one shows what a wrong one does."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=secret_key or self.secret_key,
            region_name="us-east-1",
        )

    def bucket(self) -> str:
        """Create a fresh, empty bucket and return its name."""
        name = f"unirg-test-{uuid.uuid4().hex}"
        self.client().create_bucket(Bucket=name)
        return name


@pytest.fixture(scope="session")
def s3() -> S3:
    """A real S3 server: the one that UNIRG_TEST_S3_ENDPOINT and AWS_* name, or Ceph's gateway, started here.

    On another server, the buckets of a run stay behind under the names `unirg-test-*`.
    """
    if endpoint := os.environ.get("UNIRG_TEST_S3_ENDPOINT"):
        return S3(endpoint, os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
    if reason := s3_server.why_not():
        if os.environ.get("CI") == "true":
            pytest.fail(f"no S3 server: {reason}")
        pytest.skip(f"no S3 server: {reason}")
    server = s3_server.start(Path(os.environ[SERVER_DIR]), owner=int(os.environ[SERVER_OWNER]))
    return S3(server.endpoint_url, server.access_key, server.secret_key)


@pytest.fixture
def s3_environment(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """The real server, with this process's environment pointing at it."""
    yield from _in_environment(s3, monkeypatch)


@pytest.fixture(scope="session")
def _moto_server() -> Iterator[S3]:
    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

    # moto looks whether an object is there, and then writes it: two threads may both. S3 does that at once.
    one_at_a_time = threading.Lock()
    for name in ("_key_response_put", "_key_response_post"):
        setattr(S3Response, name, _locked(getattr(S3Response, name), one_at_a_time))
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield S3(f"http://{host}:{port}", "moto", "moto")
    server.stop()


def _locked(method: Callable[..., Any], lock: threading.Lock) -> Callable[..., Any]:
    def locked(*arguments: Any, **named: Any) -> Any:
        with lock:
            return method(*arguments, **named)

    return locked


@pytest.fixture
def moto_s3(_moto_server: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """moto's S3, empty, with this process's environment pointing at it. It checks no signatures."""
    yield from _in_environment(_moto_server, monkeypatch)
    urllib.request.urlopen(f"{_moto_server.endpoint_url}/moto-api/reset", data=b"").close()


def _in_environment(server: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    from s3fs import S3FileSystem

    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    # fsspec keeps file systems by their arguments, which do not show that the environment has changed.
    S3FileSystem.clear_instance_cache()
    yield server
    S3FileSystem.clear_instance_cache()


@pytest.fixture(params=["file", "moto_s3", pytest.param("s3_environment", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of an empty store: a folder, a bucket of moto, a bucket of a real server."""
    if request.param == "file":
        return f"file://{tmp_path}/store"
    return f"s3://{request.getfixturevalue(request.param).bucket()}/store"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This test's own place for copies of remote artifacts and for work in progress."""
    monkeypatch.setenv("UNIRG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def postgres() -> Iterator[postgres_server.Server]:
    """A real PostgreSQL: the one that UNIRG_TEST_POSTGRES names, or Debian's, started here."""
    if uri := os.environ.get("UNIRG_TEST_POSTGRES"):
        yield postgres_server.Server(uri)
        return
    if reason := postgres_server.why_not():
        if os.environ.get("CI") == "true":
            pytest.fail(f"no PostgreSQL: {reason}")
        pytest.skip(f"no PostgreSQL: {reason}")
    with postgres_server.running() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URI of a database in which even MLflow's tables are not made yet."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/runs/mlflow.db"
        return
    server: postgres_server.Server = request.getfixturevalue("postgres")
    with server.database() as uri:
        yield uri


@pytest.fixture(scope="session")
def _sqlite_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables") / "mlflow.db"
    _make_tables(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def _postgres_tables(postgres: postgres_server.Server) -> Iterator[str]:
    with postgres.database() as uri:
        _make_tables(uri)
        yield uri.rpartition("/")[2]


def _make_tables(uri: str) -> None:
    """MLflow's tables, by another process: PostgreSQL copies no database that somebody is connected to."""
    script = "import sys; from unirg.lifecycle import store; store.find(sys.argv[1], 'none')"
    subprocess.run([sys.executable, "-c", script, uri], check=True, cwd=Path(__file__).parent.parent)


@pytest.fixture(params=["sqlite", "postgresql"])
def tracking_uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URI of an empty metrics store."""
    if request.param == "sqlite":
        (tmp_path / "runs").mkdir()
        shutil.copy(request.getfixturevalue("_sqlite_tables"), tmp_path / "runs" / "mlflow.db")
        yield f"sqlite:///{tmp_path}/runs/mlflow.db"
        return
    tables = request.getfixturevalue("_postgres_tables")
    with request.getfixturevalue("postgres").database(tables) as uri:
        yield uri
