"""The stub endpoint and the weather before S3 do what they are told, or their tests would show nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path

import httpx
import pytest

from tests.conftest import S3
from tests.scoring.s3_faults import Trouble, Weather, troubled
from tests.scoring.stub_server import FAULTS, Behaviour, Fault, Served, question_of, served
from tests.waiting import until


def ask(stub: Served, body: bytes = b'{"messages": []}') -> httpx.Response:
    with httpx.Client(trust_env=False, timeout=5) as http:
        return http.post(f"{stub.url}/chat/completions", content=body)


def always(fault: Fault, **settings: float) -> Behaviour:
    return Behaviour(always={fault: [""]}, hang_s=0.2, **settings)  # type: ignore[arg-type]


def test_its_text_is_a_function_of_the_request_alone(tmp_path: Path) -> None:
    bodies = [b'{"messages": [%d]}' % number for number in range(3)]
    with served(Behaviour(jitter_s=0.05), tmp_path / "log") as stub:
        first = [ask(stub, body).json()["choices"][0]["message"]["content"] for body in bodies]
        assert [ask(stub, body).json()["choices"][0]["message"]["content"] for body in bodies] == first
        assert len(set(first)) == 3
        known = [hashlib.sha256(body).hexdigest() for body in bodies]
        assert stub.asked() == stub.answered() == known * 2
        assert all(name.startswith(question_of(text)) for name, text in zip(known, first, strict=True))
        assert httpx.get(f"{stub.url}/models").json()["data"] == [{"id": "stub"}]


@pytest.mark.parametrize(
    ("fault", "status", "body"),
    [
        ("unavailable", 503, b"{}"),
        ("busy", 429, b"{}"),
        ("error", 500, b"{}"),
        ("refused", 400, b"{}"),
        ("blank", 200, b""),
        ("html", 200, b"<html>Welcome</html>"),
    ],
)
def test_faults_that_are_answers(fault: Fault, status: int, body: bytes, tmp_path: Path) -> None:
    with served(always(fault), tmp_path / "log") as stub:
        answer = ask(stub)
        assert (answer.status_code, answer.content) == (status, body)
        assert ("Retry-After" in answer.headers) == (fault == "busy")
        assert stub.answered() == []


def test_faults_inside_a_completion(tmp_path: Path) -> None:
    with served(always("length"), tmp_path / "log") as stub:
        assert ask(stub).json()["choices"][0]["finish_reason"] == "length"
    with served(always("empty"), tmp_path / "log") as stub:
        assert ask(stub).json()["choices"][0]["message"]["content"] == ""
    with (
        served(always("cut"), tmp_path / "log") as stub,
        pytest.raises(ValueError, match=r"JSON|Unterminated"),
    ):
        ask(stub).json()


@pytest.mark.parametrize(
    ("fault", "error"),
    [("reset", httpx.ReadError), ("hang", httpx.RemoteProtocolError), ("short", httpx.RemoteProtocolError)],
)
def test_faults_of_the_connection(fault: Fault, error: type[Exception], tmp_path: Path) -> None:
    with served(always(fault), tmp_path / "log") as stub, pytest.raises(error):
        ask(stub)


def test_poison_kills_it_and_its_supervisor_starts_it_again_on_the_same_port(tmp_path: Path) -> None:
    behaviour = Behaviour(always={"poison": [hashlib.sha256(b"bad").hexdigest()[:20]]})
    with served(behaviour, tmp_path / "log", restart_s=0.3) as stub:
        first = stub.stats()["pid"]
        with pytest.raises(httpx.RemoteProtocolError):
            ask(stub, b"bad")
        with pytest.raises(httpx.ConnectError):
            ask(stub)

        def back() -> bool:
            try:
                return ask(stub).status_code == 200
            except httpx.ConnectError:
                return False

        until(back, 10)
        assert stub.stats()["pid"] != first


def test_faults_by_chance_do_not_depend_on_the_order_and_end(tmp_path: Path) -> None:
    chance: dict[Fault, float] = {"unavailable": 0.3, "error": 0.2}
    behaviour, other = Behaviour(chance=chance, seed=1), Behaviour(chance=chance, seed=2)
    names = [hashlib.sha256(b"%d" % number).hexdigest() for number in range(2000)]
    found = [behaviour.fault(name, 1) for name in names]
    assert 0.45 < sum(fault is not None for fault in found) / len(names) < 0.55
    assert found != [other.fault(name, 1) for name in names]
    assert not any(behaviour.fault(name, 3) for name in names)
    assert set(found) - {None} <= set(FAULTS)


def test_it_takes_no_more_than_it_can_at_a_time(tmp_path: Path) -> None:
    with (
        served(Behaviour(latency_s=0.5, capacity=1), tmp_path / "log") as stub,
        httpx.Client(trust_env=False, timeout=5) as http,
    ):
        import threading

        thread = threading.Thread(target=ask, args=(stub,))
        thread.start()
        until(lambda: stub.stats()["arrived"] == 1)
        assert http.post(f"{stub.url}/chat/completions", content=b"x").status_code == 429
        thread.join()


@pytest.mark.parametrize("trouble", ["unavailable", "slow", "short", "unheard"])
def test_bad_weather_before_s3(trouble: Trouble, moto_s3: S3) -> None:
    import botocore.exceptions

    bucket = moto_s3.bucket()
    moto_s3.client().put_object(Bucket=bucket, Key="there", Body=b"x" * 100)
    weather = Weather(chance={trouble: 1.0}, most=1, slow_s=0.01)
    with troubled(moto_s3, weather) as seen:
        client = seen.client()
        client.meta.config.retries = {"total_max_attempts": 1}
        client.put_object(Bucket=bucket, Key="new", Body=b"y")  # botocore asks again
        try:
            body = client.get_object(Bucket=bucket, Key="there")["Body"].read()
        except (botocore.exceptions.BotoCoreError, OSError):
            assert trouble == "short"
        else:
            assert body == b"x" * 100
    assert weather.met[trouble] >= 1
    assert moto_s3.client().get_object(Bucket=bucket, Key="new")["Body"].read() == b"y"
