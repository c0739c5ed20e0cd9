"""Pipelines sent to KFP, once or by a clock: parameters, versions, one recurring run, whatever fails."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines import package as packaging
from pipelines import recurring, server
from pipelines.package import Package, parameters
from pipelines.recurring import cron, schedule, unschedule
from pipelines.server import Away, Refused, Server, connect
from tests.kfp_api import Api
from unirg import cli
from unirg.errors import UserError

GIVEN = ["archive=s3://a/studies", "checkpoint=s3://s/grpo", "store=s3://s"]
NIGHTLY = "0 0 3 * * *"
INPUTS: dict[str, dict[str, Any]] = {
    "store": {"parameterType": "STRING", "description": "where"},
    "steps": {"parameterType": "NUMBER_INTEGER", "isOptional": True},
    "rate": {"parameterType": "NUMBER_DOUBLE", "isOptional": True},
    "fast": {"parameterType": "BOOLEAN", "isOptional": True},
    "names": {"parameterType": "LIST", "isOptional": True},
    "more": {"parameterType": "STRUCT", "isOptional": True},
}
SMALL = Package("unirg-small", b"text", INPUTS)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setattr(server, "AGAIN", server.AGAIN.new(backoff_factor=0))
    with Api().running() as running:
        yield running


@pytest.fixture
def kfp(api: Api) -> Server:
    return connect(api.url)


@pytest.fixture(scope="module")
def of() -> Package:
    return packaging.package("score_archive")


def daily(kfp: Server, of: Package, when: str = NIGHTLY, given: list[str] = GIVEN) -> str:
    return schedule(kfp, of, parameters(of, given), when, "nightly", "archives")[0]


def test_values_have_the_types_that_the_pipeline_declares() -> None:
    given = ["store=1", "steps=3", "rate=1e-4", "fast=true", "names=[minimum=50, 2]", "more={a: [1]}"]
    assert parameters(SMALL, given) == {
        "store": "1",
        "steps": 3,
        "rate": 0.0001,
        "fast": True,
        "names": ["minimum=50", 2],
        "more": {"a": [1]},
    }
    assert parameters(SMALL, ["store=", "rate=2"]) == {"store": "", "rate": 2}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "unirg-small needs store (where): give name=value"),
        (["stores=x"], "unirg-small has no parameter stores: did you mean store?"),
        (["zzz=x"], "unirg-small has no parameter zzz: there are fast, more, names, rate, steps, store"),
        (["store"], "parameter 'store' is not of the form name=value"),
        (["store=x", "store=y"], "parameter store is given twice"),
        (["store=x", "steps=3.5"], "parameter 'steps=3.5': the pipeline wants a whole number"),
        (["store=x", "steps=true"], "the pipeline wants a whole number"),
        (["store=x", "rate=.nan"], "the pipeline wants a number"),
        (["store=x", "rate=fast"], "the pipeline wants a number"),
        (["store=x", "rate=1e"], "the pipeline wants a number"),
        (["store=x", "fast=1"], "the pipeline wants true or false"),
        (["store=x", "names=a"], "the pipeline wants a list, such as [a, b]"),
        (["store=x", "names=[a"], "the value is not valid YAML"),
        (["store=x", "names=[2026-01-01]"], "a part of it (a date?) is no JSON"),
        (["store=x", "more=[a]"], "the pipeline wants a mapping"),
    ],
)
def test_a_wrong_parameter_is_named_before_anything_is_sent(given: list[str], said: str) -> None:
    with pytest.raises(UserError) as wrong:
        parameters(SMALL, given)
    assert said in str(wrong.value)


def test_a_pipeline_that_is_none_is_told_with_the_nearest() -> None:
    with pytest.raises(UserError, match="no pipeline trains: did you mean train"):
        packaging.package("trains")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("0 3 * * 0", "0 0 3 * * 0"),
        ("0 0 3 * * 0", "0 0 3 * * 0"),
        ("*/15 8-18/2 ? jan,7 mon-FRI", "0 */15 8-18/2 ? jan,7 mon-FRI"),
        ("  30 5/10 * 29 2 *  ", "30 5/10 * 29 2 *"),
        ("0 0 31 2 1", "0 0 0 31 2 1"),
    ],
)
def test_a_cron_expression_is_told_to_kfp_with_its_seconds(text: str, meant: str) -> None:
    assert cron(text) == meant


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "write five fields"),
        ("@daily", "write five fields"),
        ("0 3 * *", "write five fields"),
        ("60 3 * * 0", "'60' is no minute (0 to 59)"),
        ("0 24 * * *", "'24' is no hour"),
        ("0 0 0 * *", "'0' is no day of the month (1 to 31)"),
        ("0 0 * * 7", "'7' is no day of the week (0 to 6)"),
        ("0 0 * foo *", "'foo' is no month"),
        ("0 5-2 * * *", "'5-2' is no hour"),
        ("0 */0 * * *", "'*/0' is no hour"),
        ("0 1,, * * *", "'1,,' is no hour"),
        ("0 0 31 2,4 *", "no such month has a day 31, so it would never run"),
    ],
)
def test_a_cron_expression_that_kfp_would_misread_is_refused_with_the_field(text: str, said: str) -> None:
    with pytest.raises(UserError) as wrong:
        cron(text)
    assert said in str(wrong.value)
    assert repr(text) in str(wrong.value)


def test_the_same_version_is_uploaded_once_and_a_changed_one_beside_it(
    api: Api, kfp: Server, of: Package
) -> None:
    first = kfp.version(of)
    assert kfp.version(of) == first
    changed = replace(of, text=of.text + b"# more\n")
    second = kfp.version(changed)
    assert second.pipeline_id == first.pipeline_id
    assert second.pipeline_version_id != first.pipeline_version_id
    assert api.names("pipelines") == ["unirg-score-archive"]
    assert api.names("versions") == [of.version, changed.version]
    assert [one["description"].encode() for one in api.things["versions"]] == [of.text, changed.text]


def test_uploads_at_the_same_moment_meet_in_one_version(api: Api, of: Package) -> None:
    at_once(6, lambda number: connect(api.url).version(of))
    assert api.names("pipelines") == ["unirg-score-archive"]
    assert api.names("versions") == [of.version]


def test_a_pipeline_compiles_to_the_same_version_in_another_process(of: Package) -> None:
    script = "from pipelines.package import package; print(package('score_archive').version)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == of.version


def test_the_same_settings_change_nothing(api: Api, kfp: Server, of: Package) -> None:
    assert daily(kfp, of) == "created"
    before = [dict(one) for one in api.things["recurringruns"]]
    assert daily(kfp, of) == "found"
    assert api.things["recurringruns"] == before
    (made,) = before
    assert made["mode"] == "ENABLE"
    assert made["trigger"]["cron_schedule"]["cron"] == NIGHTLY
    assert made["max_concurrency"] == "1"
    assert made["no_catchup"] is True
    assert made["runtime_config"]["parameters"] == {
        "archive": "s3://a/studies",
        "checkpoint": "s3://s/grpo",
        "store": "s3://s",
    }


def change_cron(kfp: Server, of: Package) -> str:
    return daily(kfp, of, "0 0 4 * * *")


def change_parameter(kfp: Server, of: Package) -> str:
    return daily(kfp, of, given=[*GIVEN, "corpus=rexrank"])


def change_code(kfp: Server, of: Package) -> str:
    return daily(kfp, replace(of, text=of.text + b"# more\n"))


@pytest.mark.parametrize("change", [change_cron, change_parameter, change_code])
def test_changed_settings_replace_the_schedule_and_end_no_run(
    api: Api, kfp: Server, of: Package, change: Callable[[Server, Package], str]
) -> None:
    daily(kfp, of)
    (old,) = api.enabled()
    run = api.fire("nightly")
    assert change(kfp, of) == "replaced"
    (new,) = api.things["recurringruns"]
    assert new["mode"] == "ENABLE"
    assert new["recurring_run_id"] != old["recurring_run_id"]
    assert api.most_enabled == 1
    assert [one["run_id"] for one in api.things["runs"]] == [run]
    assert change(kfp, of) == "found"


def test_a_schedule_that_somebody_disabled_is_enabled_again(api: Api, kfp: Server, of: Package) -> None:
    daily(kfp, of)
    api.set_mode(api.enabled()[0]["recurring_run_id"], "DISABLE")
    assert daily(kfp, of) == "found"
    assert len(api.enabled()) == len(api.things["recurringruns"]) == 1


CHANGES = ["POST /apis/v2beta1/recurringruns", "DELETE /apis/v2beta1/recurringruns", ":enable"]


@pytest.mark.parametrize("lost", [0, 1], ids=["before it is done", "after it was done"])
@pytest.mark.parametrize("at", CHANGES)
def test_a_crash_at_any_change_leaves_what_the_same_command_ends(
    api: Api, kfp: Server, of: Package, at: str, lost: int
) -> None:
    daily(kfp, of)
    api.fail(at, lost, times=99)
    with pytest.raises(Away, match="does not answer"):
        change_cron(kfp, of)
    assert len(api.enabled()) <= 1
    api.heal()
    change_cron(kfp, of)
    (one,) = api.things["recurringruns"]
    assert one["mode"] == "ENABLE"
    assert one["trigger"]["cron_schedule"]["cron"] == "0 0 4 * * *"
    assert api.most_enabled == 1


def at_once(number: int, work: Callable[[int], Any]) -> list[BaseException]:
    """Do something in several threads at the same moment; what failed."""
    failed: list[BaseException] = []
    barrier = threading.Barrier(number)

    def run(one: int) -> None:
        barrier.wait()
        try:
            work(one)
        except UserError as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(one,)) for one in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failed


def test_schedulers_at_the_same_moment_leave_one_schedule(api: Api, of: Package) -> None:
    for when in (NIGHTLY, "0 0 4 * * *"):
        assert not at_once(5, lambda number, when=when: daily(connect(api.url), of, when))  # type: ignore[misc]
        (one,) = api.things["recurringruns"]
        assert one["mode"] == "ENABLE"
        assert one["trigger"]["cron_schedule"]["cron"] == when
    assert api.most_enabled == 1


def test_of_schedulers_that_disagree_at_the_same_moment_one_wins(api: Api, of: Package) -> None:
    for _ in range(3):
        failed = at_once(4, lambda number: daily(connect(api.url), of, f"0 {number} 4 * * *"))
        assert all("meanwhile" in str(error) for error in failed)
        assert len(failed) < 4
        (one,) = api.things["recurringruns"]
        assert one["mode"] == "ENABLE"
    assert api.most_enabled == 1


def test_what_others_scheduled_under_the_name_is_left_alone(api: Api, kfp: Server, of: Package) -> None:
    daily(kfp, of)
    api.things["recurringruns"][0]["description"] = "made by hand"
    for act in (lambda: daily(kfp, of), lambda: unschedule(kfp, "nightly")):
        with pytest.raises(UserError, match="give another --name"):
            act()
    assert len(api.enabled()) == 1
    assert recurring.schedules(kfp) == []


def test_a_schedule_is_listed_and_removed_and_its_run_goes_on(api: Api, kfp: Server, of: Package) -> None:
    daily(kfp, of)
    schedule(kfp, of, parameters(of, GIVEN), NIGHTLY, "other", "archives")
    schedule(kfp, of, parameters(of, GIVEN), NIGHTLY, "third", "archives")
    run = api.fire("nightly")
    assert unschedule(kfp, "nightly") == 1
    assert unschedule(kfp, "nightly") == 0
    assert [one.display_name for one in recurring.schedules(kfp)] == ["other", "third"]
    assert [one["run_id"] for one in api.things["runs"]] == [run]


def test_what_fails_for_a_moment_is_asked_again(api: Api, kfp: Server, of: Package) -> None:
    api.fail("GET", 503, times=2)
    api.fail("GET /apis/v2beta1/recurringruns", 0, times=1)
    assert daily(kfp, of) == "created"
    assert len(api.enabled()) == 1


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (401, Refused, "renew the token"),
        (403, Refused, "ask for a role that allows it, or check --namespace"),
        (404, Refused, "is it the address of KFP's API?"),
        (500, Away, "run the same command again later"),
        (503, Away, "run the same command again later"),
    ],
)
def test_what_the_api_refuses_is_told_with_host_and_remedy(
    api: Api, kfp: Server, of: Package, status: int, kind: type[UserError], said: str
) -> None:
    api.fail("/pipelines?", status, times=99)
    with pytest.raises(kind) as wrong:
        daily(kfp, of)
    assert api.url in str(wrong.value)
    assert said in str(wrong.value)
    assert "a fault that the test wants" in str(wrong.value)


def test_a_token_is_read_anew_for_every_call(api: Api, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    api.tokens = {"first"}
    kfp = connect(api.url, token_file=str(file))
    assert kfp.recurring() == []
    api.tokens = {"second"}
    with pytest.raises(Refused, match="renew the token"):
        kfp.recurring()
    file.write_text("second\n")
    assert kfp.recurring() == []


@pytest.mark.parametrize(
    ("host", "said"),
    [("", "no KFP server"), ("kfp.example.org", "is no URL"), ("http://user:secret@kfp", "is no URL")],
)
def test_an_address_that_is_none_is_refused(host: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT", raising=False)
    with pytest.raises(UserError, match=said) as wrong:
        connect(host)
    assert "secret" not in str(wrong.value)


def test_tls_that_cannot_be_trusted_is_told(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="no TLS that can be trusted; check --host"):
        connect(api.url.replace("http", "https")).recurring()
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
    with pytest.raises(UserError, match="SSL_CERT_FILE=/nowhere: no such file"):
        connect(api.url)


def test_a_server_that_never_answers_is_left(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "TIMEOUT_S", (1.0, 0.2))
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(Away, match="does not answer"):
        connect(f"http://127.0.0.1:{silent.getsockname()[1]}").recurring()


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("TERM", "dumb")

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(["pipeline", *arguments])
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out, printed.err

    return call


def test_the_command_line_runs_schedules_lists_and_removes(
    api: Api, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", api.url)
    code, out, err = run("submit", "score_archive", *GIVEN)
    (started,) = api.things["runs"]
    assert (code, out.strip()) == (0, started["run_id"])
    assert f"{api.url}/#/runs/details/{started['run_id']}" in err
    code, out, err = run("schedule", "score_archive", *GIVEN, "--cron", "0 3 * * 0", "--name", "weekly")
    assert (code, out.strip()) == (0, api.enabled()[0]["recurring_run_id"])
    assert "schedule weekly: created; 0 0 3 * * 0" in err
    assert "weekly\t0 0 3 * * 0\tenabled\t" in run("schedules")[1]
    assert "schedule weekly: removed" in run("unschedule", "score_archive", "--name", "weekly")[2]
    assert "there was none" in run("unschedule", "score_archive", "--name", "weekly")[2]
    assert "train.yaml" in run("compile", str(tmp_path / "compiled"))[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("submit", "trian"), "no pipeline trian: did you mean train?"),
        (("submit", "train"), "unirg-train needs store"),
        (("schedule", "train", "store=s3://s"), "name either --cron EXPRESSION or --on-event"),
        (("schedule", "train", "store=s3://s", "--cron", "1 2 3"), "--cron '1 2 3': write five fields"),
        (("schedule", "train", "store=s3://s", "--cron", "0 3 * * 0", "--name", "A b"), "--name A b"),
        (("schedule", "train", "store=s", "--cron", "0 3 * * 0", "--watch", "s3://b"), "leave them out"),
        (("schedules", "--host", "http://127.0.0.1:9"), "http://127.0.0.1:9 does not answer"),
    ],
)
def test_a_mistake_on_the_command_line_ends_with_2_and_a_line(
    run: Run, arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "AGAIN", server.AGAIN.new(backoff_factor=0))
    code, _, err = run(*arguments)
    assert code == 2
    assert said in err
    assert "Traceback" not in err
