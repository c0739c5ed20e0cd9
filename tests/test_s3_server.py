"""The S3 server of the tests is a real one, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from botocore.exceptions import ClientError

from tests import s3_server
from tests.conftest import S3
from tests.waiting import until

pytestmark = pytest.mark.s3
MULTIPART_MINIMUM = 5 * 2**20  # S3's smallest part, but for the last one


def test_a_wrong_secret_is_refused(s3: S3) -> None:
    bucket = s3.bucket()
    with pytest.raises(ClientError) as refused:
        s3.client(secret_key="wrong").put_object(Bucket=bucket, Key="key", Body=b"x")
    assert refused.value.response["Error"]["Code"] == "SignatureDoesNotMatch"


def test_a_missing_bucket_is_named_as_such(s3: S3) -> None:
    with pytest.raises(ClientError) as refused:
        s3.client().put_object(Bucket="never-created", Key="key", Body=b"x")
    assert refused.value.response["Error"]["Code"] == "NoSuchBucket"


def test_exactly_one_of_eight_racing_conditional_puts_wins(s3: S3) -> None:
    bucket, barrier = s3.bucket(), Barrier(8)

    def put(number: int) -> str:
        client = s3.client()
        barrier.wait()
        try:
            client.put_object(Bucket=bucket, Key="claim", Body=b"%d" % number, IfNoneMatch="*")
        except ClientError as lost:
            return str(lost.response["Error"]["Code"])
        return f"won {number}"

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(put, range(8)))
    winners = [outcome for outcome in outcomes if outcome.startswith("won")]
    assert len(winners) == 1, outcomes
    assert set(outcomes) - set(winners) <= {"PreconditionFailed", "ConditionalRequestConflict"}
    kept = s3.client().get_object(Bucket=bucket, Key="claim")["Body"].read()
    assert f"won {int(kept)}" == winners[0]


def test_a_multipart_upload_comes_back_whole(s3: S3) -> None:
    client, bucket = s3.client(), s3.bucket()
    parts = [os.urandom(MULTIPART_MINIMUM), os.urandom(MULTIPART_MINIMUM), os.urandom(1000)]
    upload = client.create_multipart_upload(Bucket=bucket, Key="large")["UploadId"]
    done = [
        {
            "PartNumber": number,
            "ETag": client.upload_part(
                Bucket=bucket, Key="large", UploadId=upload, PartNumber=number, Body=part
            )["ETag"],
        }
        for number, part in enumerate(parts, start=1)
    ]
    client.complete_multipart_upload(
        Bucket=bucket, Key="large", UploadId=upload, MultipartUpload={"Parts": done}
    )
    assert client.get_object(Bucket=bucket, Key="large")["Body"].read() == b"".join(parts)


def test_buckets_are_fresh(s3: S3) -> None:
    first, second = s3.bucket(), s3.bucket()
    assert first != second
    assert s3.client().list_objects_v2(Bucket=first)["KeyCount"] == 0


def test_moto_forgets_between_tests_and_answers_through_the_environment(moto_s3: S3) -> None:
    import fsspec

    bucket = moto_s3.bucket()
    fsspec.filesystem("s3").pipe_file(f"{bucket}/key", b"value")
    assert [entry["Name"] for entry in moto_s3.client().list_buckets()["Buckets"]] == [bucket]


@pytest.fixture
def directory(s3: S3, tmp_path: Path) -> Iterator[Path]:
    """A folder for a server of the test's own; asking for `s3` first skips where none can run."""
    if os.environ.get("UNIRG_TEST_S3_ENDPOINT"):
        pytest.skip("another S3 server is in use")
    yield tmp_path / "server"
    s3_server.stop(tmp_path / "server")


def _processes(directory: Path) -> dict[int, str]:
    """Processes with the folder in their command line, by id: all of a server's have it."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(str(directory) in word for word in words):
            found[int(entry.parent.name)] = " ".join(words)
    return found


def _wait_until_gone(directory: Path) -> None:
    until(lambda: not _processes(directory), 10, lambda: f"still running: {_processes(directory)}")


def test_stopping_leaves_no_process_and_no_file_behind(directory: Path) -> None:
    with s3_server.running(directory):
        names = " ".join(_processes(directory).values())
        assert all(daemon in names for daemon in ("ceph-mon", "ceph-osd", "radosgw", "supervise"))
    assert not _processes(directory)
    assert not directory.exists()
    s3_server.stop(directory)  # again: nothing to do, no error


def test_starting_twice_gives_the_same_server(directory: Path) -> None:
    with s3_server.running(directory) as first, ThreadPoolExecutor(4) as pool:
        again = list(pool.map(s3_server.start, [directory] * 4))
    assert again == [first] * 4


def test_the_command_starts_a_server_that_outlives_it_and_stops_it(directory: Path) -> None:
    command = [sys.executable, s3_server.__file__]
    shown = subprocess.run(
        [*command, "start", "--dir", str(directory)], capture_output=True, text=True, timeout=60, check=True
    )
    assert all(key in shown.stdout for key in ("endpoint_url", "access_key", "secret_key"))
    assert len(_processes(directory)) == 4
    subprocess.run([*command, "stop", "--dir", str(directory)], timeout=60, check=True)
    assert not _processes(directory)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_the_server_ends_with_the_process_it_was_started_for(directory: Path, number: int) -> None:
    script = (
        "import sys, time; from pathlib import Path; from tests import s3_server\n"
        f"with s3_server.running(Path({str(directory)!r})):\n"
        "    print('up', flush=True)\n"
        "    time.sleep(60)\n"
    )
    root = Path(__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "up\n"
        owner.send_signal(number)
    _wait_until_gone(directory)


def test_the_daemons_end_when_their_supervisor_is_killed(directory: Path) -> None:
    s3_server.start(directory, owner=os.getpid())
    os.kill(int((directory / "supervisor.pid").read_text()), signal.SIGKILL)
    _wait_until_gone(directory)


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, s3: S3) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(s3_server.S3ServerError, match="other files"):
        s3_server.start(tmp_path)
    s3_server.stop(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_missing_daemons_are_named_with_the_packages_that_bring_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    reason = s3_server.why_not()
    assert reason is not None
    assert all(word in reason for word in ("radosgw", "ceph-mon", "ceph-osd", "tools/apt.sh"))
