"""The command line: exit codes, one clear line for a mistake, and no content in any failure."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.canary import CANARY
from unirg import __version__, artifact, cli
from unirg.config import Config
from unirg.errors import UserError
from unirg.scoring.engine import EndpointAway

ROOT = Path(__file__).parent.parent
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call the command line; (exit code, what it printed, what it said on stderr)."""
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(list(arguments))
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture
def made(tmp_path: Path) -> str:
    """The URI of an artifact that no verb can use."""
    with artifact.draft(str(tmp_path / "store"), "demo", 1, Config(), {}) as draft:
        (draft.out / "data").write_text("x")
        return draft.commit().uri


def test_help_and_version_succeed(run: Run) -> None:
    assert run("--version")[:2] == (0, f"unirg {__version__}\n")
    code, out, _ = run("--help")
    assert code == 0
    assert all(verb in out for verb in ("stage", "combine", "train", "serve", "score", "evaluate", "report"))
    for verb in ("stage", "combine", "train", "serve", "score", "evaluate", "report"):
        assert run(verb, "--help")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Usage"),
        (("stag",), "stag"),
        (("stage", "--colour", "red"), "--colour"),
        (("train",), "algorithm"),
        (("train", "sft"), "--cohort"),
        (("stage", "--recipe", "toy/stag"), "no recipe named toy/stag: did you mean toy/stage?"),
        (("stage", "--recipe", "/nowhere.yaml"), "no recipe at /nowhere.yaml"),
        (("stage", "studis=3"), "unknown key studis: did you mean studies?"),
        (("stage", "studies=none"), "studies = 'none'"),
        (("stage", "studies"), "override 'studies' is not of the form key=value"),
        (("stage", "corpus=iu_xray"), "iu_xray needs data=URI"),
        (("stage", "corpus=iu_xray", "data=/nowhere/at/all"), "/nowhere/at/all"),
        (("stage", "studies=10", "hold_out=[nobody]"), "hold_out names nobody"),
        (("train", "sft", "--cohort", "/nowhere"), "no artifact at /nowhere"),
        (("score", "--cohort", "/nowhere", "--checkpoint", "/nowhere"), "no artifact at /nowhere"),
        (("score", "--archive", "x", "--endpoint", "ftp://h", "--model", "m"), "not an address such as"),
        (("serve", "--checkpoint", "/nowhere"), "no artifact at /nowhere"),
        (("evaluate", "--cohort", "/nowhere", "--predictions", "sft"), "no artifact at /nowhere"),
        (("stage", "--store", "s3://b/p", "studies=2"), "set AWS_ACCESS_KEY_ID"),
    ],
)
def test_a_users_mistake_ends_with_2_and_one_line_that_names_it(
    run: Run, arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the default store is below the working directory
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    code, out, err = run(*arguments)
    assert code == 2
    assert said in out + err
    assert "Traceback" not in out + err


def test_an_artifact_of_another_stage_is_named_with_what_is_needed(run: Run, made: str) -> None:
    code, _, err = run("train", "sft", "--cohort", made, "--parent", made)
    assert (code, err) == (2, f"unirg: {made} was made by stage demo; this needs cohort\n")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> str:
    store = tmp_path_factory.mktemp("store")
    command = ["stage", "studies=8", "size=64", "workers=1", "--store", str(store)]
    done = subprocess.run(
        [sys.executable, "-m", "unirg.cli", *command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "cohort: studies." in done.stderr
    return done.stdout.strip()


def test_a_verb_prints_the_uri_of_what_it_made_and_finds_it_done_the_next_time(run: Run, cohort: str) -> None:
    store = str(Path(cohort).parents[1])
    code, out, err = run("stage", "studies=8", "size=64", "workers=2", "--store", store)
    assert (code, out.strip()) == (0, cohort)
    assert "stage: " not in err
    assert Path(out.strip(), "manifest.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "ppo"), "no algorithm ppo: there are base, sft, grpo"),
        (("train", "sft"), "sft needs a parent: the URI of the checkpoint to start from"),
        (("train", "grpo", "--parent", "COHORT"), "made by stage cohort; this needs base or sft or grpo"),
        (("evaluate", "--predictions", "sft"), "sft: not of the form NAME=URI"),
        (("evaluate", "--predictions", "=uri", "--predictions", "a=b"), "=uri: not of the form NAME=URI"),
        (("evaluate", "--predictions", "sft=/nowhere"), "no artifact at /nowhere"),
    ],
)
def test_a_mistake_beside_a_good_cohort_is_named(
    run: Run, cohort: str, arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    given = [cohort if each == "COHORT" else each for each in arguments]
    code, out, err = run(*given, "--cohort", cohort, "--store", str(tmp_path))
    assert code == 2
    assert said in err
    assert err.startswith("unirg: ")
    assert len(err.splitlines()) == 1, err
    assert out == ""


@pytest.fixture
def failing() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Add a verb `fail` that does what it is given."""

    def add(function: Callable[[], object]) -> None:
        def fail() -> None:
            function()

        cli.app.command("fail")(fail)

    before = list(cli.app.registered_commands)
    yield add
    cli.app.registered_commands[:] = before


def raising(error: BaseException) -> Callable[[], object]:
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("correct the path"), 2, "unirg: correct the path"),
        (EndpointAway("look after it"), 75, "unirg: look after it"),
        (OSError(28, "No space left on device"), 2, "unirg: the disk is full: free some space"),
        (KeyboardInterrupt(), 130, "unirg: interrupted; finished work is kept, the same command goes on"),
        (ValueError(CANARY), 1, "unirg: ValueError at "),
        (KeyError(CANARY), 1, "UNIRG_DEBUG=1"),
        (SystemExit(7), 7, ""),
    ],
)
def test_a_failure_has_its_exit_code_and_its_line(
    run: Run,
    failing: Callable[[Callable[[], object]], None],
    error: BaseException,
    code: int,
    said: str,
) -> None:
    failing(raising(error))
    left, out, err = run("fail")
    assert left == code
    assert said in err
    assert CANARY not in out + err
    assert "Traceback" not in out + err


def test_debugging_shows_what_was_withheld(
    run: Run, failing: Callable[[Callable[[], object]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIRG_DEBUG", "1")
    failing(raising(ValueError("the detail")))
    assert "the detail" in run("fail")[2]
