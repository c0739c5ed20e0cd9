"""`unirg withdraw`, `lineage` and `gc` on the command line: what they print, and a mistake in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lifecycle.stores import age, cohort, made, shards
from unirg import cli
from unirg.cohort.withdrawal import Withdrawn
from unirg.study import keyed_id

KEY = "5a" * 32
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Call the command line on the test's own store; (exit code, what it printed, what it said on stderr)."""
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("UNIRG_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("UNIRG_SITE_KEY", raising=False)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(list(arguments))
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A store with a cohort of two shards and the policies trained on it."""
    where = str(tmp_path / "store")
    source = cohort(where, [("s10", "train"), ("s11", "train")], [("s20", "test")])
    base = made(where, "base", {"cohort": source}, source="hub")
    made(where, "sft", {"cohort": source, "parent": base})
    return where


def test_what_is_withdrawn_is_traced_and_then_removed(run: Run, store: str) -> None:
    assert run("lineage")[1:] == ("", f"nothing is withdrawn from {store}\n")
    code, out, err = run("withdraw", "--study", "phantom/s10", "--study", "phantom/s20")
    assert (code, Path(out.strip()).parent) == (0, Path(store, "withdrawn"))
    assert "2 studies and 0 patients are withdrawn" in err
    code, out, err = run("lineage")
    assert code == 0
    assert [line.partition("  /")[0].split(maxsplit=1) for line in out.splitlines()] == [
        ["cohort", "learned from none, behind it 2"],
        ["base", "learned from none, behind it 2"],
        ["sft", "learned from 1, behind it 2"],
    ]
    code, out, err = run("gc", "--drop-withdrawn", "--dry-run")
    assert "1 cohorts, 2 shards" in err
    assert "would be freed" in err
    assert len(out.splitlines()) == 3
    assert len(shards(store)) == 2
    code, out, err = run("gc", "--drop-withdrawn")
    assert (code, shards(store)) == (0, set())
    assert [line.split()[0] for line in run("lineage")[1].splitlines()] == ["base", "sft"]
    assert "gc: 0 cohorts, 0 shards, 0.0 MB freed" in run("gc", "--drop-withdrawn")[2]


def test_a_study_can_be_traced_before_it_is_withdrawn(run: Run, store: str) -> None:
    assert len(run("lineage", "--patient", "phantom/p1")[1].splitlines()) == 3
    assert "no artifact of the store was made with any" in run("lineage", "--study", "phantom/s99")[2]
    assert not Withdrawn.load(store)


def test_a_hospital_names_its_own_numbers_in_files(
    run: Run, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIRG_SITE_KEY", KEY)
    numbers = tmp_path / "numbers.csv"
    numbers.write_text("accession,mrn\nACC-1,0451\n")
    files = ("--studies-from", str(numbers), "--patients-from", str(numbers))
    code, out, err = run("withdraw", "--institution", "north", *files)
    assert code == 0, err
    key = bytes.fromhex(KEY)
    found = Withdrawn.load(store)
    assert found.studies == {f"north/{keyed_id(key, 'study', 'ACC-1')}"}
    assert found.patients == {f"north/{keyed_id(key, 'patient', '0451')}"}
    assert "0451" not in out + err + Path(out.strip()).read_text()


def test_ids_that_match_nothing_are_told_and_withdrawn_all_the_same(run: Run, store: str) -> None:
    assert "warning" not in run("withdraw", "--study", "phantom/s10", "--patient", "phantom/p2")[2]
    code, _, err = run(
        "withdraw", "--study", "phantom/s10", "--study", "phantom/s99", "--patient", "phantom/p9"
    )
    assert code == 0
    assert "no cohort of the store holds 1 of the 2 studies and 1 of the 1 patients: where" in err
    assert "s99" not in err
    assert "phantom/s99" in Withdrawn.load(store).studies
    next(Path(store).glob("shards/*")).write_bytes(b"")
    code, _, err = run("withdraw", "--study", "phantom/s11")
    assert code == 0
    assert "which of them the store's cohorts hold is not known" in err
    assert "phantom/s11" in Withdrawn.load(store).studies


def test_a_store_that_is_not_there_is_made_only_when_asked(run: Run, tmp_path: Path) -> None:
    code, _, err = run("withdraw", "--study", "phantom/s10")
    assert code == 2
    assert "there is no store at" in err
    assert not (tmp_path / "store").exists()
    assert run("withdraw", "--study", "phantom/s10", "--new-store")[0] == 0
    assert Withdrawn.load(str(tmp_path / "store")).studies == {"phantom/s10"}


def test_withdrawn_shards_that_stay_are_told(run: Run, store: str) -> None:
    first = next(Path(store).glob("shards/*")).stem
    note = Path(store, ".work", "cohort-0123456789abcdef", "notes", "shard-000000.json")
    note.parent.mkdir(parents=True)
    note.write_text(f'{{"shard": {{"sha256": "{first}"}}}}')
    run("withdraw", "--study", "phantom/s10", "--study", "phantom/s20")
    assert "gc: 1 shards with withdrawn studies stay" in run("gc", "--drop-withdrawn")[2]


def test_a_young_shard_is_said_to_stay(run: Run, store: str) -> None:
    manifest = next(Path(store).glob("cohort/*/manifest.json"))
    manifest.unlink()
    assert "2 younger shards stay for now" in run("gc")[2]
    assert "2 shards" in run("gc", "--grace-hours", "0")[2]
    age(store)
    assert shards(store) == set()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("withdraw",), "nothing to withdraw: name studies or patients"),
        (("withdraw", "--study", "Jane Doe"), "study 1 is no id such as corpus/study_id"),
        (("withdraw", "--study", "s1"), "study 1 is no id"),
        (("withdraw", "--patient", "north/Doe"), "name an institution's own numbers with --institution"),
        (("withdraw", "--study", "a/b", "--reason", "She asked."), "the reason is a code"),
        (
            ("withdraw", "--studies-from", "/nowhere/ids.txt"),
            "--studies-from: the file of ids does not exist",
        ),
        (("withdraw", "--patients-from", "BAD"), "--patients-from: the file of ids: line 2 is no id"),
        (("withdraw", "--institution", "north"), "nothing to withdraw"),
        (("withdraw", "--institution", "north", "--study", "1"), "UNIRG_SITE_KEY does not hold a key"),
        (("withdraw", "--institution", "no rth", "--study", "1"), "the institution's name may hold only"),
        (("lineage", "--store", "/nowhere/at/all"), "there is no store at /nowhere/at/all"),
        (("lineage", "--patient", "p1"), "patient 1 is no id such as corpus/patient_id"),
        (("gc", "--store", "/nowhere/at/all"), "there is no store at /nowhere/at/all"),
        (("gc", "--grace-hours", "-1"), "--grace-hours"),
        (("gc", "--drop-withdrawal"), "--drop-withdrawn"),
    ],
)
def test_a_users_mistake_ends_with_2_and_names_it(
    run: Run, store: str, arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_text("phantom/p1\nJane Doe\n")
    code, out, err = run(*(str(bad) if each == "BAD" else each for each in arguments))
    assert code == 2
    assert said in err
    assert "Traceback" not in out + err
    assert "Doe" not in out + err
    assert not Withdrawn.load(store)
