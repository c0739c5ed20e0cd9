"""The audit: whatever is done to the log is seen, up to the last anchor outside it; and what is recorded."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lifecycle.stores import age, cohort, made
from unirg import cli, journal, storage
from unirg.config import canonical_json
from unirg.errors import UserError
from unirg.journal import append, name_of, read
from unirg.lifecycle import audit, retention
from unirg.lifecycle import store as metrics_store
from unirg.lifecycle.audit import Anchor, Problem, anchor, anchors, head, verify
from unirg.lifecycle.store import Run

Run_ = Callable[..., tuple[int, str, str]]
ENTRIES = 7


def fill(store: str, entries: int = ENTRIES) -> None:
    for number in range(1, entries + 1):
        append(store, "stage", {"artifact": f"cohort/{number:016x}", "digest": f"{number:064x}"}, actor="ada")


def written() -> dict[int, bytes]:
    """The entries of a log, by number."""
    with tempfile.TemporaryDirectory() as store:
        fill(store)
        log = journal.Log(store)
        return {number: Path(log.uri(number)).read_bytes() for number in range(1, ENTRIES + 1)}


LOG = written()
HEAD = Anchor(ENTRIES, json.loads(LOG[ENTRIES])["hash"])
NUMBERS = st.integers(1, ENTRIES)


def check(entries: Mapping[int, bytes], *anchored: Anchor) -> list[Problem]:
    """What is found wrong with a log of these objects."""
    with tempfile.TemporaryDirectory() as store:
        log = journal.Log(store)
        for number, data in entries.items():
            path = Path(log.uri(number))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return verify(store, anchored)


def rewritten(entries: Iterable[bytes]) -> dict[int, bytes]:
    """A log with these entries, numbered and hashed anew by somebody who knows how."""
    made: dict[int, bytes] = {}
    previous = journal.BEGINNING
    for number, data in enumerate(entries, 1):
        fields = {k: v for k, v in json.loads(data).items() if k != "hash"}
        fields |= {"number": number, "previous": previous}
        previous = storage.sha256(canonical_json(fields))
        made[number] = canonical_json(fields | {"hash": previous})
    return made


# Verification


def test_a_log_as_it_was_written_has_no_problem(store: str) -> None:
    assert verify(store) == []
    fill(store)
    assert verify(store, [Anchor(entry.number, entry.hash) for entry in read(store)]) == []
    assert head(store) == HEAD._replace(hash=journal.Log(store).entry(ENTRIES).hash)  # type: ignore[union-attr]


@given(number=NUMBERS, data=st.data())
def test_any_change_of_a_byte_is_seen(number: int, data: st.DataObject) -> None:
    content = bytearray(LOG[number])
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[place]))
    assert check(LOG | {number: bytes(content)})


@given(number=NUMBERS, junk=st.binary(max_size=300))
def test_anything_else_in_an_entry_s_place_is_seen(number: int, junk: bytes) -> None:
    found = check(LOG | {number: junk})
    assert found[0] == (number, f"entry {number} is altered: it cannot be read as an entry")


@pytest.mark.parametrize(
    "junk",
    [
        *(b"[" * 60_000, b"null", b"[]", b"7", b'{"hash":1}', b'{"hash":"a","number":NaN}', b"\xff\xfe{}"),
        *(LOG[2] + b"\n", LOG[2].decode().encode("utf-16"), LOG[2].replace(b"{", b'{"number":2,', 1)),
    ],
)
def test_junk_stops_nothing(junk: bytes) -> None:
    assert [problem.number for problem in check(LOG | {2: junk})] == [2]


@given(gone=st.sets(NUMBERS, min_size=1))
def test_any_removal_is_seen_a_tail_s_by_an_anchor(gone: set[int]) -> None:
    left = {number: data for number, data in LOG.items() if number not in gone}
    is_tail = gone == set(range(min(gone), ENTRIES + 1))
    assert bool(check(left)) is not is_tail
    found = check(left, HEAD)
    assert found
    assert all(problem.number in gone for problem in found)


@given(order=st.permutations(range(1, ENTRIES + 1)))
def test_any_other_order_is_seen(order: list[int]) -> None:
    found = check({number: LOG[other] for number, other in enumerate(order, 1)})
    moved = {number for number, other in enumerate(order, 1) if number != other}
    assert moved <= {problem.number for problem in found}
    assert bool(found) is bool(moved)


@given(order=st.lists(NUMBERS, max_size=10).filter(lambda order: order != list(range(1, ENTRIES + 1))))
def test_a_log_written_anew_is_whole_but_not_the_one_that_was_anchored(order: list[int]) -> None:
    other = rewritten(LOG[number] for number in order)
    assert check(other) == []
    if order[:ENTRIES] != list(range(1, ENTRIES + 1)):
        assert check(other, HEAD)


@given(number=NUMBERS, before=st.integers(1, ENTRIES))
def test_an_entry_between_others_is_seen(number: int, before: int) -> None:
    shifted = {n if n < before else n + 1: data for n, data in LOG.items()}
    assert check(shifted | {before: LOG[number]})


@given(changed=NUMBERS, anchored=NUMBERS)
def test_an_anchor_guards_all_up_to_it_and_nothing_behind(changed: int, anchored: int) -> None:
    fields = json.loads(LOG[changed]) | {"actor": "eve"}
    other = rewritten((LOG | {changed: canonical_json(fields)}).values())
    found = check(other, Anchor(anchored, json.loads(LOG[anchored])["hash"]))
    assert [problem.number for problem in found] == ([anchored] if changed <= anchored else [])


def test_each_problem_says_what_is_wrong(tmp_path: Path) -> None:
    cut = {number: data for number, data in LOG.items() if number not in (2, 4, 5, 7)}
    anew = rewritten([LOG[1], LOG[1], LOG[3]])[3]
    assert [problem.sentence for problem in check(cut, HEAD)] == [
        "entry 2 is missing: removed, or lost",
        "entries 4 to 5 are missing: removed, or lost",
        "the log ends with entry 6, but entry 7 was anchored: its tail is cut",
    ]
    assert [problem.sentence for problem in check(LOG | {3: anew, 6: LOG[5]})] == [
        "entry 3 does not follow the one before it: one of the two is another",
        "entry 4 does not follow the one before it: one of the two is another",
        "entry 6 says that it is number 5: it was moved here",
        "entry 7 does not follow the one before it: one of the two is another",
    ]
    assert [problem.sentence for problem in check(LOG, Anchor(3, "0" * 64))] == [
        "entry 3 is not the one that was anchored: it, or one before it, is another"
    ]


@pytest.mark.parametrize("name", ["0000000/0000000003 (copy).json", "0000009/0000000003.json", "note.txt"])
def test_a_file_that_is_no_entry_is_seen(tmp_path: Path, name: str) -> None:
    store = str(tmp_path)
    fill(store)
    stray = tmp_path / "audit" / "entries" / name
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(LOG[3])
    assert verify(store) == [Problem(0, f"{stray} is no entry of the log")]
    assert append(store, "stage", {"digest": "another"}).number == ENTRIES + 1


def test_a_planted_last_number_is_seen_and_takes_no_time(tmp_path: Path) -> None:
    assert [problem.number for problem in check(LOG | {9_999_999_999: LOG[3]})] == [8, 9_999_999_999]


def test_more_entries_than_are_read_at_once_are_verified_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "WINDOW", 3)
    assert check(LOG, HEAD) == []
    assert [problem.number for problem in check(LOG | {4: b"", 6: LOG[5]})] == [4, 6, 7]
    monkeypatch.setattr(journal, "PER_FOLDER", 2)
    fill(str(tmp_path))
    assert name_of(ENTRIES) == "0000003/0000000007.json"
    assert verify(str(tmp_path), [head(str(tmp_path)) or HEAD]) == []


# Anchors


@pytest.fixture
def tracking(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mlflow.db"


def test_anchors_in_the_metrics_store_are_found_again_and_held_against_the_log(
    tmp_path: Path, tracking: str
) -> None:
    store = str(tmp_path / "store")
    with pytest.raises(UserError, match="nothing is recorded in"):
        anchor(store, tracking)
    with pytest.raises(UserError, match="there is no metrics store at"):
        anchors(store, tracking)  # a mistyped URI must not read as a log that nobody anchored
    fill(store, 2)
    first = anchor(store, tracking)
    assert anchor(store, tracking) == first
    run = metrics_store.record(tracking, "key", Run("retrain"), experiment="retrain")
    fill(store, 3)
    second = anchor(store, tracking, run.run_id)
    assert anchors(store, tracking) == [first, second]
    assert anchors(f"file://{store}/", tracking) == [first, second]
    assert anchors(str(tmp_path / "other"), tracking) == []
    assert verify(store, anchors(store, tracking)) == []
    Path(journal.Log(store).uri(3)).unlink()
    assert verify(store) == []
    assert [problem.number for problem in verify(store, anchors(store, tracking))] == [3]
    with pytest.raises(UserError, match="check the URI"):
        anchor(store, tracking, "no such run")


@pytest.mark.parametrize("text", ["", "7", "7:", "0:" + "a" * 64, "7:" + "a" * 31, "7:" + "g" * 64, "-1:aa"])
def test_what_is_no_anchor_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no anchor: write N:HASH"):
        Anchor.of(text)
    assert Anchor.of(f" {str(HEAD).upper()}\n") == HEAD
    assert check(LOG, Anchor.of(str(HEAD)[:34])) == []


# What happens in a store


def test_withdrawn_and_dropped_are_recorded_without_naming_anybody(tmp_path: Path) -> None:
    from unirg.cohort.withdrawal import withdraw

    store = str(tmp_path / "store")
    source = cohort(store, [("s10", "train"), ("s11", "train")])
    for _ in range(2):
        withdraw(store, ["phantom/s10"], ["phantom/p7"], "consent")
    age(store)
    retention.gc(store, drop_withdrawn=True, dry_run=True)
    assert [entry.action for entry in read(store)] == ["stage", "withdraw"]
    for _ in range(2):
        retention.gc(store, drop_withdrawn=True)
    stage, withdrawn, drop = read(store)
    assert (withdrawn.note, withdrawn.subjects["studies"], withdrawn.subjects["patients"]) == (
        "consent",
        "1",
        "1",
    )
    assert Path(store, withdrawn.subjects["entry"]).is_file()
    assert drop.action == "drop"
    assert drop.subjects == {"artifact": stage.subjects["artifact"], "digest": source.digest}
    text = "".join(entry.model_dump_json() for entry in read(store))
    assert not [word for word in ("s10", "p7", "s11", "Findings") if word in text]
    assert verify(store) == []


def test_a_drop_whose_gc_was_killed_is_recorded_by_the_next(tmp_path: Path) -> None:
    from unirg.cohort.withdrawal import withdraw
    from unirg.lifecycle.lineage import Roll

    store = str(tmp_path / "store")
    source = cohort(store, [("s10", "train")])
    withdraw(store, ["phantom/s10"])
    Roll.of(source).put(store)
    Path(source.uri, "manifest.json").unlink()  # as far as it came
    retention.gc(store)
    assert [entry.action for entry in read(store)] == ["stage", "withdraw", "drop"]


# The command line


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run_:
    """Call the command line on the test's own store; (exit code, what it printed, what it said on stderr)."""
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("UNIRG_STORE", str(tmp_path / "store"))

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(list(arguments))
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out, printed.err

    return call


def test_the_log_is_shown_anchored_and_verified(run: Run_, tmp_path: Path, tracking: str) -> None:
    store = str(tmp_path / "store")
    assert run("audit", "show") == (0, "", f"nothing is recorded in {store}\n")
    assert run("audit", "anchor") == (2, "", f"unirg: nothing is recorded in {store}: check --store\n")
    fill(store)
    append(store, "approve", {"model": "m" * 64}, "seen by the board", "Dr. Ada")
    code, out, _ = run("audit", "show", "--last", "2")
    assert code == 0
    lines = out.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("8 20")
    assert lines[1].endswith(f"approve Dr. Ada (seen by the board) model={'m' * 64}")
    _, out, _ = run("audit", "show", "--action", "approve", "--json")
    assert json.loads(out)["actor"] == "Dr. Ada"
    code, paper, _ = run("audit", "anchor")
    assert (code, paper) == (0, f"{head(store)}\n")
    code, out, err = run("audit", "verify")
    assert (code, out) == (0, f"{paper.strip()}: as it was written; 0 anchors hold\n")
    assert "a cut tail would not show" in err
    assert run("audit", "anchor", "--tracking-uri", tracking)[1] == paper
    code, out, err = run("audit", "verify", "--anchor", paper.strip(), "--tracking-uri", tracking)
    assert (code, out, err) == (0, f"{paper.strip()}: as it was written; 2 anchors hold\n", "")
    Path(journal.Log(store).uri(8)).unlink()
    assert run("audit", "verify")[0] == 0
    code, out, err = run("audit", "verify", "--anchor", paper.strip())
    assert (code, out) == (2, "the log ends with entry 7, but entry 8 was anchored: its tail is cut\n")
    assert "is not as it was written (1 problems): compare it with a copy" in err


def test_a_mistake_on_the_command_line_is_named(run: Run_) -> None:
    assert "'abc' is no anchor: write N:HASH" in run("audit", "verify", "--anchor", "abc")[2]
    assert "--run 17 needs --tracking-uri" in run("audit", "anchor", "--run", "17")[2]


def test_what_a_terminal_would_obey_is_not_shown_as_it_is(run: Run_, tmp_path: Path) -> None:
    made(str(tmp_path / "store"), "evaluate", {"score.\x1b[2J": "d" * 64})
    append(str(tmp_path / "store"), "gate", {"verdict": "\x1b[2J"})
    out = run("audit", "show")[1]
    assert "\x1b" not in out
    assert out.count("\n") == 2
