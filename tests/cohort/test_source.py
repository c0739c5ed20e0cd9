"""Files of a corpus: tables row by row, and no way out of its folder."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unirg.cohort.corpora import UnreadableImage, source
from unirg.errors import UserError

CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


def fields(text: str | bytes) -> list[list[str] | str]:
    return list(source.csv_fields(io.BytesIO(text.encode() if isinstance(text, str) else text)))


def written(rows: list[list[str]], **style: object) -> str:
    out = io.StringIO(newline="")
    csv.writer(out, **style).writerows(rows)  # type: ignore[arg-type]
    return out.getvalue()


@given(st.lists(st.lists(CELLS, min_size=2, max_size=3)), st.sampled_from(["\n", "\r\n"]))
def test_what_csv_writes_is_read_back(rows: list[list[str]], end: str) -> None:
    assert fields(written(rows, lineterminator=end, quoting=csv.QUOTE_ALL)) == rows


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b'"a"b,c', source.BROKEN),
        (b'"a"b,"c\nd",e', source.BROKEN),
        (b"caf\xe9,x", source.NOT_UTF8),
        (b"x" * 200_000 + b",y", source.TOO_LONG),
        (b'"' + b"x\n" * 100_000 + b'",y', source.TOO_LONG),
        (b'"' + b"x\n" * 2_000_000 + b'",y', source.TOO_LONG),
        (b"y," + b"x" * 3_000_000, source.TOO_LONG),
    ],
    ids=["quoting", "quoting over lines", "latin", "field", "lines", "many lines", "line"],
)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
def test_one_bad_row_costs_no_other(row: bytes, reason: str, end: bytes) -> None:
    table = end.join([b"a,b", b'5" tube,"it said ""stop"""', row, b"", b"c,d"])
    assert fields(table) == [["a", "b"], ['5" tube', 'it said "stop"'], reason, ["c", "d"]]


def test_a_quote_that_is_never_closed_ends_the_table() -> None:
    for text in ('a,b\nc,"d\ne,f\n', 'a,b\nc,"d' + "x\n" * 1_000_000):
        with pytest.raises(csv.Error):
            fields(text)


def test_a_cell_that_a_spreadsheet_would_run_is_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('id,findings\n1,"=HYPERLINK(""http://x"",""y"")"\n2,+1\n')
    rows = [row for _, row in source.csv_rows(str(tmp_path), "t.csv", "table")]
    assert rows == [{"id": "1", "findings": '=HYPERLINK("http://x","y")'}, {"id": "2", "findings": "+1"}]


@pytest.fixture
def linked(tmp_path: Path) -> str:
    """A corpus with links in and out, and what else a folder may have in place of a file."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "films").mkdir(parents=True)
    outside.mkdir()
    (root / "films" / "a.png").write_bytes(b"inside")
    (outside / "b.png").write_bytes(b"secret")
    (root / "in.png").symlink_to("films/a.png")
    (root / "out.png").symlink_to(outside / "b.png")
    (root / "up.png").symlink_to("../outside/b.png")
    (root / "loop.png").symlink_to("loop.png")
    (root / "gone.png").symlink_to("nothing.png")
    os.mkfifo(root / "pipe.png")
    (tmp_path / "alias").symlink_to(root)
    return str(tmp_path / "alias")


def test_a_link_is_followed_within_the_corpus_alone(linked: str) -> None:
    assert [file.path for file in source.listing(linked, lambda path: True)] == ["films/a.png", "in.png"]
    assert source.read_image(linked, "in.png") == b"inside"
    for path in ("out.png", "up.png", "loop.png", "gone.png", "pipe.png", "films"):
        with pytest.raises(UnreadableImage, match=r"^missing$"):
            source.read_image(linked, path)
        with pytest.raises(FileNotFoundError), source.opened(linked, path, "table"):
            pass


def test_a_link_to_a_folder_elsewhere_is_refused_and_not_passed_over(linked: str) -> None:
    Path(linked, "films", "inner").symlink_to("../films")
    assert [file.path for file in source.listing(linked, lambda path: True)] == ["films/a.png", "in.png"]
    Path(linked, "films", "more").symlink_to("../../outside")
    with pytest.raises(UserError, match="leads to a folder elsewhere: name or mount that one"):
        source.listing(linked, lambda path: True)
    with pytest.raises(UnreadableImage, match=r"^missing$"):
        source.read_image(linked, "films/more/b.png")


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a/../../x", "a\0b", "file:///x", "s3://b/x", "c:\\x", ""]
)
def test_a_path_out_of_the_corpus_is_refused_before_anything_is_opened(tmp_path: Path, path: str) -> None:
    with pytest.raises(UnreadableImage, match="not a path below the corpus"):
        source.read_image(str(tmp_path), path)
