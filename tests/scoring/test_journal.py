from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from unirg.scoring.journal import Journal


def record(number: int, text: str = "a report") -> dict[str, object]:
    return {"corpus": "c", "study_id": f"s{number:03d}", "text": text}


def write(path: Path, numbers: range) -> None:
    with Journal(path) as journal:
        for number in numbers:
            journal.append(record(number, "x\n\u2028 ü" * number))


def read(path: Path) -> list[dict[str, object]]:
    with Journal(path) as journal:
        return list(journal)


def test_what_was_written_is_read_sorted(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        for number in (2, 0, 1):
            journal.append(record(number))
    assert read(tmp_path / "j") == [record(0), record(1), record(2)]


@settings(max_examples=60)
@given(cut=st.integers(0, 10_000))
def test_a_journal_torn_anywhere_keeps_its_whole_lines_and_goes_on(
    tmp_path_factory: object, cut: int
) -> None:
    path = Path(tmp_path_factory.mktemp("torn")) / "j"  # type: ignore[attr-defined]
    write(path, range(6))
    content = path.read_bytes()
    kept = content[: cut % (len(content) + 1)]
    path.write_bytes(kept)
    whole = kept.count(b"\n")
    assert len(read(path)) == whole
    with Journal(path) as journal:
        journal.append(record(900))
    assert [one["study_id"] for one in read(path)] == [f"s{n:03d}" for n in range(whole)] + ["s900"]


@settings(max_examples=40)
@given(place=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_an_altered_line_counts_as_not_done(tmp_path_factory: object, place: int, flip: int) -> None:
    path = Path(tmp_path_factory.mktemp("altered")) / "j"  # type: ignore[attr-defined]
    write(path, range(4))
    whole = read(path)
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= flip
    path.write_bytes(content)
    assert all(one in whole for one in read(path))
    assert len(read(path)) < 4


def test_a_cleared_journal_begins_anew(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.append(record(1))
        journal.clear()
        journal.append(record(2))
    assert read(tmp_path / "j") == [record(2)]
