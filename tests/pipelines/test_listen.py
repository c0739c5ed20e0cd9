"""A listener over real HTTP before a KFP API: bursts, repetitions, runs under way, strangers, faults."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus, urlsplit

import pytest

from pipelines import listen, server, webhook
from pipelines.events import Place, Unreadable, concerning
from pipelines.listen import Listener, Runs
from pipelines.package import Package, package, parameters
from pipelines.server import Seen, connect
from pipelines.webhook import served
from tests.canary import CANARY
from tests.kfp_api import Api
from tests.waiting import until
from unirg import cli_pipeline
from unirg.errors import UserError
from unirg.lifecycle.watch import WatchConfig

TOKEN = "a-token-of-the-hospital"
PLACE = Place("incoming", "north")
GIVEN = ["archive=s3://incoming/north", "checkpoint=s3://s/grpo", "store=s3://s"]
Thing = dict[str, Any]


def record(key: str = "north/1/a.png", bucket: str = "incoming", name: str = "ObjectCreated:Put") -> Thing:
    """One of S3's event records."""
    found = {"key": quote_plus(key), "size": 7, "sequencer": f"17{key}"}
    return {
        "eventVersion": "2.0",
        "eventSource": "minio:s3",
        "eventTime": "2026-01-31T12:00:00.000Z",
        "eventName": name,
        "s3": {"bucket": {"name": bucket}, "object": found},
    }


def minio(*records: Thing) -> Thing:
    """What MinIO's webhook sends."""
    return {"EventName": "s3:ObjectCreated:Put", "Key": "incoming/north/x", "Records": list(records)}


def eventbridge(key: str = "north/1/a.png", what: str = "Object Created", event: str = "17") -> Thing:
    detail = {"bucket": {"name": "incoming"}, "object": {"key": key, "size": 7}}
    return {"version": "0", "id": event, "detail-type": what, "source": "aws.s3", "detail": detail}


def cloud(data: Any, event: str = "1", kind: str = "com.example.notice") -> Thing:
    return {"specversion": "1.0", "id": event, "source": "/store", "type": kind, "data": data}


GOOGLE = "google.cloud.storage.object.v1.finalized"
JSON = {"content-type": "application/json"}
BINARY = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/store", "ce-type": "com.example.notice"}
BATCH = {"content-type": "application/cloudevents-batch+json; charset=utf-8"}


@pytest.mark.parametrize(
    ("headers", "sent", "number"),
    [
        (JSON, minio(record()), 1),
        (JSON, minio(record(), record("north/1/b.png"), record()), 2),
        (JSON, minio(record("north/a b+c/ä.png")), 1),
        (JSON, {"Records": [record(name="s3:ObjectCreated:CompleteMultipartUpload")]}, 1),
        (JSON, minio(record("northern/1.png")), 0),
        (JSON, minio(record("north")), 0),
        (JSON, minio(record("south/north/1.png")), 0),
        (JSON, minio(record(bucket="outgoing")), 0),
        (JSON, minio(record(name="s3:ObjectAccessed:Get")), 0),
        (JSON, minio(record(name="s3:ObjectRemoved:Delete")), 0),
        (JSON, {"Records": None}, 0),
        (JSON, {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "incoming"}, 0),
        (JSON, eventbridge(), 1),
        (JSON, eventbridge("south/1.png"), 0),
        (JSON, eventbridge(what="Object Deleted"), 0),
        (JSON, cloud(minio(record())), 1),
        (JSON, cloud(eventbridge()), 1),
        (JSON, cloud(minio(record("south/1.png"))), 0),
        (JSON, cloud({"bucket": "incoming", "name": "north/1"}, kind=GOOGLE), 1),
        (JSON, cloud({"bucket": "incoming", "name": "south/1"}, kind=GOOGLE), 0),
        (JSON, cloud({"bucket": "incoming", "name": "north/1"}), 0),
        (JSON, cloud("text"), 0),
        (BINARY, minio(record()), 1),
        (BINARY | {"ce-type": GOOGLE}, {"bucket": "incoming", "name": "north/1"}, 1),
        (BATCH, [cloud(minio(record()), "1"), cloud(minio(record()), "2"), cloud(minio(record()), "1")], 2),
    ],
)
def test_a_notice_in_any_form_counts_if_it_tells_of_a_new_object_in_the_place(
    headers: dict[str, str], sent: Any, number: int
) -> None:
    assert len(concerning(PLACE, headers, json.dumps(sent).encode())) == number


def nested(depth: int) -> Thing:
    return cloud(nested(depth - 1)) if depth else minio(record())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"7",
        b'"text"',
        b'[{"Records": []}]',
        b'{"Records": [{}]}',
        b'{"Records": 7}',
        b'{"Records": [{"eventName": "ObjectCreated:Put", "s3": {"object": {"key": 7}}}]}',
        b'{"detail-type": "Object Created"}',
        b"[" * 100_000,
        json.dumps(nested(9)).encode(),
        json.dumps({"Records": [{"eventName": CANARY}]}).encode(),
    ],
)
def test_what_is_no_notice_is_refused_without_quoting_it(body: bytes) -> None:
    with pytest.raises(Unreadable) as wrong:
        concerning(PLACE, JSON, body)
    assert CANARY not in str(wrong.value)


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("s3://incoming/north", Place("incoming", "north")),
        ("s3://incoming/north/", Place("incoming", "north")),
        ("s3://incoming/north/table.csv", Place("incoming", "north")),
        ("s3://incoming/table.parquet", Place("incoming", "")),
        ("s3://incoming", Place("incoming", "")),
        ("s3://incoming/a?b#c", Place("incoming", "a?b#c")),
    ],
)
def test_the_place_is_a_bucket_and_the_folder_that_holds_the_images(uri: str, place: Place) -> None:
    assert Place.of(uri) == place


@pytest.mark.parametrize("uri", ["", "/data/incoming", "file:///data", "s3://", "https://h/x"])
def test_a_place_that_tells_of_nothing_is_refused(uri: str) -> None:
    with pytest.raises(UserError, match="notices come from a bucket"):
        Place.of(uri)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setattr(server, "AGAIN", server.AGAIN.new(backoff_factor=0))
    with Api().running() as running:
        yield running


@pytest.fixture(scope="module")
def of() -> Package:
    return package("score_archive")


@dataclass
class Door:
    """A listener that works, and how to knock."""

    listener: Listener
    url: str
    told: list[str] = field(default_factory=list)

    def post(self, sent: Any, token: str = TOKEN, path: str = "/events", **headers: str) -> int:
        body = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
        named = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        return self.ask("POST", path, body, named | headers)

    def ask(self, verb: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> int:
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        connection.request(verb, path, body, headers or {})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status


Open = Callable[..., Any]


@pytest.fixture
def opened(api: Api, of: Package, tmp_path: Path) -> Open:
    """Open a door: `with opened() as door`."""
    token = tmp_path / "token"
    token.write_text(TOKEN)

    @contextmanager
    def door(settle: float = 0.1, longest: float = 60.0, catch_up: bool = False) -> Iterator[Door]:
        told: list[str] = []
        runs = Runs(connect(api.url), of, parameters(of, GIVEN), "archives")
        listener = Listener(PLACE, runs, "nightly", settle, longest, poll_s=0.02, tell=told.append)
        if catch_up:
            listener.catch_up()
        with served(listener, "127.0.0.1", 0, str(token)) as url:
            yield Door(listener, url, told)

    return door


def runs(api: Api) -> list[Thing]:
    return list(api.things["runs"])


def stays(api: Api, number: int, seconds: float = 0.6) -> None:
    """No more runs come than there are."""
    time.sleep(seconds)
    assert len(runs(api)) == number


def test_a_burst_of_notices_starts_one_run_with_the_parameters(api: Api, opened: Open) -> None:
    with opened(settle=0.4) as door:
        for number in range(20):
            assert door.post(minio(record(f"north/{number}.png"))) == 202
            time.sleep(0.01)
        until(lambda: runs(api))
        (run,) = runs(api)
        api.set_state(run["run_id"], "SUCCEEDED")
        stays(api, 1)
    assert run["display_name"].startswith("nightly 20")
    assert run["runtime_config"]["parameters"] == dict(one.split("=") for one in GIVEN)
    assert len(api.things["versions"]) == 1


def test_the_same_notice_again_starts_nothing(api: Api, opened: Open) -> None:
    with opened() as door:
        door.post(minio(record()))
        until(lambda: runs(api))
        api.set_state(runs(api)[0]["run_id"], "SUCCEEDED")
        assert door.post(minio(record())) == 202
        stays(api, 1)
        door.post(minio(record("north/2.png")))
        until(lambda: len(runs(api)) == 2)


def test_what_comes_while_a_run_is_active_is_one_more_run_after_it(api: Api, opened: Open) -> None:
    with opened() as door:
        door.post(minio(record()))
        until(lambda: runs(api))
        first = runs(api)[0]["run_id"]
        for state in ("PENDING", "RUNNING"):
            api.set_state(first, state)
            for number in range(5):
                door.post(minio(record(f"north/{state}-{number}.png")))
            stays(api, 1, 0.4)
        api.set_state(first, "FAILED")
        until(lambda: len(runs(api)) == 2)
        api.set_state(runs(api)[1]["run_id"], "SUCCEEDED")
        stays(api, 2)
    assert sum("waits for the end of run" in line for line in door.told) == 1


@pytest.mark.parametrize("told", [True, False], ids=["its pipeline told", "its pipeline not told"])
def test_a_run_that_a_clock_started_is_waited_for_too(
    api: Api, opened: Open, of: Package, told: bool
) -> None:
    kfp = connect(api.url)
    run = kfp.run("by hand", kfp.version(of), {}, kfp.experiment("archives"))
    if not told:
        del runs(api)[0]["pipeline_version_reference"]
    with opened() as door:
        door.post(minio(record()))
        stays(api, 1)
        api.set_state(run, "CANCELED")
        until(lambda: len(runs(api)) == 2)


def test_steady_notices_start_a_run_in_the_end_and_the_youngest_another(api: Api, opened: Open) -> None:
    with opened(settle=0.5, longest=1.0) as door:
        for number in range(100):
            door.post(minio(record(f"north/{number}.png")))
            if runs(api):
                break
            time.sleep(0.05)
        assert 5 < number < 99
        api.set_state(runs(api)[0]["run_id"], "SUCCEEDED")
        until(lambda: len(runs(api)) == 2)


def test_a_notice_that_is_young_when_a_run_starts_stays_due() -> None:
    class Fake:
        started = 0

        def recent(self) -> list[Seen]:
            return []

        def start(self, name: str) -> None:
            self.started += 1

    fake = Fake()
    listener = Listener(PLACE, fake, "nightly", 0.5, 0.5)
    for key in ("north/1", "north/2"):
        listener.receive(JSON, json.dumps(minio(record(key))).encode())
        time.sleep(0.3)
    assert listener._left_s() <= 0
    listener._step()
    assert 0 < listener._left_s() < 0.5  # as the watch may have found the second one too young
    time.sleep(0.3)
    listener._step()
    assert fake.started == 2
    assert listener._left_s() == float("inf")


def test_kfp_away_delays_a_run_and_loses_none(api: Api, opened: Open) -> None:
    api.fail("/apis/", 503, times=30)
    with opened() as door:
        door.post(minio(record()))
        until(lambda: runs(api))
        stays(api, 1, 0.3)
    assert any("503" in line and "again in" in line for line in door.told)


@pytest.mark.parametrize("lost", [0, 1], ids=["before it was started", "after it was started"])
def test_a_lost_answer_starts_no_second_run(api: Api, opened: Open, lost: int) -> None:
    api.fail("POST /apis/v2beta1/runs", lost)
    with opened() as door:
        door.post(minio(record()))
        until(lambda: any("start" in line for line in door.told if "does not answer" not in line))
        api.set_state(runs(api)[0]["run_id"], "SUCCEEDED")
        stays(api, 1)


def test_a_listener_that_begins_with_a_run_finds_what_was_missed(api: Api, opened: Open) -> None:
    with opened(settle=60.0) as door:
        door.post(minio(record()))
    assert any("--catch-up" in line for line in door.told)
    stays(api, 0, 0.1)
    with opened(settle=60.0, catch_up=True):
        until(lambda: runs(api))
    with opened(settle=60.0, catch_up=True):  # that run is still active
        stays(api, 1)
        api.set_state(runs(api)[0]["run_id"], "SUCCEEDED")
        until(lambda: len(runs(api)) == 2)


def test_what_somebody_deleted_in_kfp_is_made_again(api: Api, opened: Open) -> None:
    with opened() as door:
        door.post(minio(record()))
        until(lambda: runs(api))
        api.set_state(runs(api)[0]["run_id"], "SUCCEEDED")
        for kind in ("versions", "experiments"):
            api.things[kind].clear()
            door.post(minio(record(f"north/{kind}.png")))
            until(lambda: runs(api)[-1]["state"] == "PENDING")
            api.set_state(runs(api)[-1]["run_id"], "SUCCEEDED")
    assert len(runs(api)) == 3


def test_a_listener_that_broke_takes_nothing_and_says_so(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Runs) -> None:
        raise RuntimeError("not foreseen")

    monkeypatch.setattr(Runs, "recent", broken)
    monkeypatch.setattr(threading, "excepthook", lambda told: None)
    with opened() as door:
        assert door.post(minio(record())) == 202
        until(lambda: door.ask("GET", "/healthz") == 503)
        assert door.post(minio(record("north/2.png"))) == 503
        assert door.ask("GET", "/readyz") == 503


def test_strangers_and_nonsense_are_refused_and_start_nothing(api: Api, opened: Open) -> None:
    with opened() as door:
        good = json.dumps(minio(record())).encode()
        for token in ("", "another-token-of-16", TOKEN[:-1], f"{TOKEN}x", "ü" * 20):
            assert door.post(good, token=token) == 401
        assert door.ask("POST", "/events", good) == 401
        assert door.ask("POST", "/events", good, {"Authorization": f"Basic {TOKEN}"}) == 401
        assert door.post(good, path="/event") == 404
        assert door.post(b"{") == 400
        assert door.post(good, **{"Transfer-Encoding": "chunked"}) == 411
        assert door.ask("GET", "/events") == 404
        assert door.ask("PUT", "/events", good) == 501
        assert door.ask("GET", "/healthz") == door.ask("GET", "/readyz") == 200
        assert door.post(minio(record(bucket="outgoing"))) == 202
        stays(api, 0)


def test_a_body_that_is_too_large_is_refused_before_it_is_read(opened: Open) -> None:
    with opened() as door:
        parts = urlsplit(door.url)
        with socket.create_connection((parts.hostname, parts.port), timeout=10) as stranger:
            head = f"POST /events HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n"
            stranger.sendall(f"{head}Content-Length: {webhook.LARGEST + 1}\r\n\r\n".encode())
            assert b" 413 " in stranger.recv(1000)


def test_a_request_that_never_ends_is_cut(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "REQUEST_S", 0.5)
    with opened() as door:
        parts = urlsplit(door.url)
        with socket.create_connection((parts.hostname, parts.port), timeout=10) as slow:
            slow.sendall(b"POST /events HTTP/1.1\r\n")
            began = time.monotonic()
            while time.monotonic() - began < 5:
                try:
                    slow.sendall(b"X-A: b\r\n")
                except OSError:
                    break
                time.sleep(0.1)
            assert time.monotonic() - began < 4
        assert door.ask("GET", "/healthz") == 200


def test_a_changed_token_counts_at_once(opened: Open, tmp_path: Path, api: Api) -> None:
    with opened() as door:
        (tmp_path / "token").write_text("another-token-of-16")
        assert door.post(minio(record())) == 401
        assert door.post(minio(record()), token="another-token-of-16") == 202
        (tmp_path / "token").write_text("")
        assert door.post(minio(record()), token="") == 503


@pytest.mark.parametrize("token", ["", "short", "with a space in it and long"])
def test_a_token_that_is_none_opens_no_door(token: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(token)
    with pytest.raises(UserError, match="holds no token"):
        webhook.token_of(str(tmp_path / "token"))


def test_without_a_token_no_door_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(webhook.LISTEN_TOKEN, raising=False)
    with pytest.raises(UserError, match="UNIRG_LISTEN_TOKEN holds no token"):
        webhook.token_of("")
    monkeypatch.setenv(webhook.LISTEN_TOKEN, TOKEN)
    assert webhook.token_of("") == TOKEN


def test_a_listener_settles_longer_than_the_watch_that_it_starts() -> None:
    assert WatchConfig.model_fields["settle_seconds"].default + 30 < cli_pipeline.SETTLE_S


def test_notices_are_forgotten_after_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "REMEMBERED", 3)
    listener = Listener(PLACE, None, "nightly", 1, 1)  # type: ignore[arg-type]
    for number in (1, 2, 3, 4):
        assert listener.receive(JSON, json.dumps(minio(record(f"north/{number}"))).encode()) == 1
    assert listener.receive(JSON, json.dumps(minio(record("north/4"))).encode()) == 0
    assert listener.receive(JSON, json.dumps(minio(record("north/1"))).encode()) == 1


@pytest.fixture
def process(api: Api, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`unirg pipeline listen` as a hospital runs it."""
    command = ["listen", "score_archive", *GIVEN, "--watch", "s3://incoming/north", "--host", api.url]
    command += ["--port", "0", "--settle", "1", "--name", "nightly", "--experiment", "archives"]
    started = subprocess.Popen(
        [sys.executable, "-m", "unirg.cli", "pipeline", *command],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"UNIRG_LISTEN_TOKEN": TOKEN},
    )
    yield started
    started.kill()
    started.wait()


def test_the_command_listens_logs_no_key_and_ends_on_sigterm(
    api: Api, process: subprocess.Popen[str]
) -> None:
    assert process.stderr is not None
    first = process.stderr.readline()
    door = Door(None, first.split()[-1])  # type: ignore[arg-type]
    assert door.post(minio(record(f"north/{CANARY}/1.png"))) == 202
    assert door.post(minio(record(f"south/{CANARY}/1.png"))) == 202
    assert door.post({"Records": [{"eventName": CANARY}]}) == 400
    assert door.ask("GET", f"/{quote_plus(CANARY)}") == 404
    assert door.ask("BREW", f"/{quote_plus(CANARY)}") == 501
    until(lambda: runs(api))
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    said = first + process.stderr.read()
    assert "started run nightly" in said
    assert "listen: ended" in said
    assert CANARY.split()[0] not in said + json.dumps(api.things)
