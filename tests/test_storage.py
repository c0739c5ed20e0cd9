"""Storage: one winner of any race, whole objects or none, and failures that say what to do."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Barrier

import pytest
from s3fs import S3FileSystem

from tests.conftest import S3
from unirg import storage
from unirg.storage import StorageError

REAL = pytest.mark.s3
MIB = 2**20
WRITERS = 8


# Objects


def test_an_object_comes_back_as_it_was_put(store: str) -> None:
    content = os.urandom(3 * MIB)
    assert storage.put_new(f"{store}/a/b", content)
    assert storage.read_bytes(f"{store}/a/b") == content


def test_an_object_that_is_there_stays(store: str) -> None:
    assert storage.put_new(f"{store}/claim", b"first")
    assert not storage.put_new(f"{store}/claim", b"second")
    assert storage.read_bytes(f"{store}/claim") == b"first"


def test_of_eight_racing_writers_exactly_one_wins_and_its_object_is_whole(store: str) -> None:
    for round_number in range(5):
        barrier = Barrier(WRITERS)
        contents = [bytes([number]) * 100_000 for number in range(WRITERS)]

        def put(number: int, barrier: Barrier = barrier, uri: str = f"{store}/claim-{round_number}") -> bool:
            barrier.wait()
            return storage.put_new(uri, bytes([number]) * 100_000)

        with ThreadPoolExecutor(WRITERS) as pool:
            won = list(pool.map(put, range(WRITERS)))
        assert won.count(True) == 1, won
        assert storage.read_bytes(f"{store}/claim-{round_number}") == contents[won.index(True)]


@REAL
def test_an_object_that_others_would_cut_into_parts_is_also_put_once(s3_environment: S3) -> None:
    uri, large = f"s3://{s3_environment.bucket()}/large", 101 * MIB
    assert storage.put_new(uri, b"\1" * large)
    assert not storage.put_new(uri, b"\2" * large)
    assert storage.read_bytes(uri)[:1] == b"\1"


@pytest.mark.parametrize("server", ["moto_s3", pytest.param("s3_environment", marks=REAL)])
def test_upload_replaces_and_download_gives_the_same_file(
    server: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    uri = f"s3://{request.getfixturevalue(server).bucket()}/object"
    source, target = tmp_path / "source", tmp_path / "deep" / "target"
    for content in (b"old", os.urandom(6 * MIB)):
        source.write_bytes(content)
        storage.upload(source, uri)
        storage.download(uri, target)
        assert target.read_bytes() == content
    assert list(target.parent.iterdir()) == [target]


def test_an_absent_object_is_not_an_error_of_storage(store: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f"{store}/absent")
    with pytest.raises(FileNotFoundError):
        storage.download(f"{store}/absent", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_putting_locally_leaves_no_other_file_behind(tmp_path: Path) -> None:
    storage.put_new(str(tmp_path / "store" / "a"), b"1")
    storage.put_new(str(tmp_path / "store" / "a"), b"2")
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["a"]


# URIs


@pytest.mark.parametrize(
    ("uri", "local"),
    [("/a/b", True), ("a", True), ("file:///a", True), ("s3://a/b", False), ("memory://x", False)],
)
def test_local_uris_are_plain_paths_and_file_uris(uri: str, local: bool) -> None:
    assert storage.is_local(uri) is local
    if local:
        assert storage.local_path(uri).is_absolute()
    else:
        with pytest.raises(StorageError, match="not a local path"):
            storage.local_path(uri)


def test_a_folder_is_no_object(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="a folder where a file should be"):
        storage.read_bytes(str(tmp_path))


def test_joining_puts_one_slash_between_parts() -> None:
    assert storage.join("s3://b/p/", "/x/", "y") == "s3://b/p/x/y"


def test_an_unknown_scheme_is_refused_by_name() -> None:
    with pytest.raises(StorageError, match="nosuch"):
        storage.read_bytes("nosuch://x/y")


# Failures of S3


def test_a_wrong_secret_is_refused_naming_the_variables(
    s3_environment: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"s3://{s3_environment.bucket()}/x"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    for attempt in (lambda: storage.read_bytes(uri), lambda: storage.put_new(uri, b"x")):
        S3FileSystem.clear_instance_cache()
        with pytest.raises(StorageError, match="AWS_SECRET_ACCESS_KEY") as refused:
            attempt()
        assert uri in str(refused.value)
        assert "wrong-secret" not in str(refused.value)


def test_missing_credentials_are_asked_for(moto_s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"s3://{moto_s3.bucket()}/x"
    S3FileSystem.clear_instance_cache()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(StorageError, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        storage.read_bytes(uri)


@pytest.mark.parametrize("server", ["moto_s3", pytest.param("s3_environment", marks=REAL)])
def test_a_missing_bucket_is_an_error_that_names_it(
    server: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    request.getfixturevalue(server)
    uri = "s3://never-created/x"
    (tmp_path / "source").write_bytes(b"x")
    for attempt in (
        lambda: storage.read_bytes(uri),
        lambda: storage.put_new(uri, b"x"),
        lambda: storage.download(uri, tmp_path / "target"),
        lambda: storage.upload(tmp_path / "source", uri),
    ):
        with pytest.raises(StorageError, match=r"never-created.*bucket does not exist.*create it"):
            attempt()


def test_a_name_that_no_bucket_can_have_is_refused(moto_s3: S3) -> None:
    with pytest.raises(StorageError, match="correct the bucket"):
        storage.put_new("s3://no spaces allowed/x", b"x")


def test_an_endpoint_that_refuses_connections_is_named(pointed_at: Pointed, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: every connection is refused
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        pointed_at(endpoint)
        with pytest.raises(StorageError, match="cannot connect") as refused:
            storage.read_bytes("s3://bucket/x")
    assert endpoint in str(refused.value)
    assert "AWS_ENDPOINT_URL_S3" in str(refused.value)


@pytest.mark.parametrize("status", [500, 502])
def test_an_endpoint_that_keeps_failing_is_asked_again_and_then_given_up(faulty: Faulty, status: int) -> None:
    faulty.answers = [status]
    with pytest.raises(StorageError, match=f"HTTP {status}.*try again later"):
        storage.put_new("s3://bucket/x", b"x")
    assert len(faulty.seen) >= storage.S3_ATTEMPTS


def test_a_passing_failure_is_not_noticed(faulty: Faulty) -> None:
    faulty.answers = [503, 200]
    assert storage.put_new("s3://bucket/x", b"x")
    assert len(faulty.seen) == 2


def test_a_write_that_conflicts_with_another_is_tried_again(faulty: Faulty) -> None:
    faulty.answers = [409, 412]
    assert not storage.put_new("s3://bucket/x", b"x")
    assert len(faulty.seen) == 2


def test_a_refused_request_is_explained(faulty: Faulty) -> None:
    faulty.answers = [400]
    with pytest.raises(StorageError, match=r"refused the request.*check the URI and the endpoint"):
        storage.put_new("s3://bucket/x", b"x")


def test_an_endpoint_that_hangs_is_given_up_in_bounded_time(
    faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIRG_S3_READ_TIMEOUT", "0.2")
    faulty.answers = ["hang"]
    started = time.monotonic()
    with pytest.raises(StorageError, match="did not answer in time"):
        storage.put_new("s3://bucket/x", b"x")
    # 2 attempts of 0.2 s, twice, and at most 1 s of botocore's backoff between attempts
    assert time.monotonic() - started < 10
    assert len(faulty.seen) <= storage.S3_ATTEMPTS * storage.S3_READS


def test_an_endpoint_that_drops_connections_is_given_up(faulty: Faulty) -> None:
    faulty.answers = ["drop"]
    with pytest.raises(StorageError, match="cannot connect"):
        storage.put_new("s3://bucket/x", b"x")


def test_an_endpoint_that_speaks_no_s3_is_named(faulty: Faulty) -> None:
    faulty.answers = ["html"]
    with pytest.raises(StorageError, match=r"127\.0\.0\.1.*check the URI and the endpoint"):
        storage.read_bytes("s3://bucket/x")


def test_a_download_that_breaks_off_leaves_no_file(faulty: Faulty, tmp_path: Path) -> None:
    faulty.answers = ["short"]
    with pytest.raises(StorageError, match="broke off"):
        storage.download("s3://bucket/x", tmp_path / "folder" / "target")
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_read_timeout_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIRG_S3_READ_TIMEOUT", "soon")
    with pytest.raises(StorageError, match="soon"):
        storage.read_bytes("s3://bucket/x")


Pointed = Callable[[str], None]


@pytest.fixture
def pointed_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pointed]:
    """Call it with an endpoint's URL; attempts are few, so that giving up takes seconds."""
    monkeypatch.setattr(storage, "S3_ATTEMPTS", 2)

    def point(endpoint: str) -> None:
        for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        for name, value in S3(endpoint, "key", "secret").environment.items():
            monkeypatch.setenv(name, value)

    S3FileSystem.clear_instance_cache()
    yield point
    S3FileSystem.clear_instance_cache()


class Faulty(ThreadingHTTPServer):
    """An HTTP server that misbehaves as told: each request takes the next answer, the last one for good."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _FaultyHandler)
        self.answers: list[int | str] = []
        self.seen: list[str] = []
        self.over = threading.Event()


class _FaultyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Faulty

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        position = min(len(self.server.seen), len(self.server.answers) - 1)
        self.server.seen.append(self.command)
        answer = self.server.answers[position]
        if answer == "hang":
            self.server.over.wait()
            self.close_connection = True
        elif answer == "drop":
            self.close_connection = True
        elif answer == "html":
            page = b"<html>No such page</html>"
            self.reply(404, page, len(page))
        elif answer == "short":
            self.reply(200, b"half", 100)
            self.close_connection = True
        else:
            codes = {409: "ConditionalRequestConflict", 412: "PreconditionFailed", 400: "InvalidArgument"}
            code = codes.get(int(answer), "InternalError")
            body = b"" if answer == 200 else f"<Error><Code>{code}</Code></Error>".encode()
            self.reply(int(answer), body, len(body))

    def reply(self, status: int, body: bytes, declared: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(declared))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = answer

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def faulty(pointed_at: Pointed) -> Iterator[Faulty]:
    with Faulty() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        pointed_at(f"http://127.0.0.1:{server.server_port}")
        yield server
        server.over.set()
        server.shutdown()


# Failures of a disk

FILL = """
import sys
from unirg import storage
from unirg.telemetry import safe_error
try:
    storage.put_new(sys.argv[1] + "/object", b"x" * 4 * 2**20)
except Exception as error:
    print(type(safe_error(error)).__name__, safe_error(error))
"""


@contextmanager
def _tiny_disk(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_explained_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    """On a tiny file system where the test may mount one, else under a limit on the size of files."""
    try:
        with _tiny_disk(tmp_path):
            said = _fill(tmp_path)
            left = list(tmp_path.iterdir())
    except (subprocess.CalledProcessError, FileNotFoundError):
        said = _fill(tmp_path, limit=MIB)
        left = list(tmp_path.iterdir())
    assert said.startswith("StorageError")
    assert "free space or choose another place" in said
    assert left == []


def test_a_file_over_the_process_limit_is_explained_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    said = _fill(tmp_path, limit=MIB)
    assert said.startswith("StorageError")
    assert "file too large: free space or choose another place" in said
    assert list(tmp_path.iterdir()) == []


def _fill(folder: Path, limit: int | None = None) -> str:
    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-c", FILL, str(folder)],
        capture_output=True,
        text=True,
        preexec_fn=limited,
        timeout=60,
        check=True,
    )
    return done.stdout


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_of_another_owner_is_explained(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="permission denied"):
        storage.put_new(str(tmp_path / "object"), b"x")
