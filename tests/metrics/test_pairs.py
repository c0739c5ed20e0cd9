"""Files of candidates and references: every kind read alike, nothing missing scored, no text in an error."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.canary import CANARY, everything_shown
from unirg.errors import UserError
from unirg.metrics.pairs import Compared, File, read

ROWS: list[dict[str, Any]] = [
    {"study_id": "s1", "candidate": "Clear.", "findings": "Lungs clear.", "impression": "Normal."},
    {"study_id": "s2", "candidate": "Large heart,\nno edema.", "findings": "", "impression": "Large  heart."},
    {"study_id": "s3", "candidate": "Clear.", "findings": "Clear.", "impression": "nan"},
]


CLEAR = "Findings: Clear."


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """The rows as the ending of the name says."""
    if path.suffix == ".csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
        path.write_text(text.getvalue(), newline="")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))
    return str(path)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json"])
def test_every_kind_of_file_gives_the_same_pairs(tmp_path: Path, ending: str) -> None:
    found, form = read(write(tmp_path / f"file.{ending}", ROWS))
    assert form == "report"
    assert found == [
        Compared("s1", "", ("Clear.", "Findings: Lungs clear. Impression: Normal.")),
        Compared("s2", "", ("Large heart,\nno edema.", "Impression: Large heart.")),
        Compared("s3", "", ("Clear.", "Findings: Clear.")),
    ]


def test_a_rexrank_submission_is_read_with_its_own_names(tmp_path: Path) -> None:
    path = tmp_path / "submission.json"
    record = {"report": "R", "section_findings": "F", "section_impression": float("nan"), "context": "C"}
    records = {
        "a": record | {"model_prediction": "P"},
        "b": record | {"model_prediction": float("nan")},
        "c": record,
    }
    path.write_text(json.dumps(records))
    found, _ = read(str(path))
    assert found[0] == Compared("a", "", ("P", "Findings: F"))
    assert [study.reason for study in found] == ["", "no candidate", "no candidate"]
    assert read(str(path), form="given")[0][0].pair == ("P", "R")


@pytest.mark.parametrize(
    ("form", "texts"),
    [
        (
            "report",
            ["Findings: Lungs clear. Impression: Normal.", "Impression: Large heart.", "Findings: Clear."],
        ),
        ("findings", ["Findings: Lungs clear.", None, CLEAR]),
        ("bare_findings", ["Lungs clear.", None, "Clear."]),
    ],
)
def test_the_form_of_the_reference_is_the_one_named(
    tmp_path: Path, form: Any, texts: list[str | None]
) -> None:
    found, used = read(write(tmp_path / "file.csv", ROWS), form=form)
    assert used == form
    assert [study.pair and study.pair[1] for study in found] == texts
    if None in texts:
        assert found[1].reason == "the reference has no findings"


def test_one_text_as_the_reference_stays_as_it_is(tmp_path: Path) -> None:
    rows = [{"study_id": 7, "candidate": "a", "reference": "two\n words ", "patient_id": "p"}]
    found, form = read(write(tmp_path / "file.jsonl", rows))
    assert form == "given"
    assert found == [Compared("7", "p", ("a", "two\n words "))]


@pytest.mark.parametrize("nothing", ["", "  \n", "nan", "NaN", None, float("nan")])
def test_a_text_that_is_missing_is_a_reason_and_never_a_pair(tmp_path: Path, nothing: Any) -> None:
    rows = [
        {"study_id": "a", "candidate": nothing, "reference": "r"},
        {"study_id": "b", "candidate": "c", "reference": nothing},
        {"study_id": "c", "candidate": "no nan here", "reference": "r"},
    ]
    found, _ = read(write(tmp_path / "file.jsonl", rows))
    assert [(study.pair, study.reason) for study in found[:2]] == [
        (None, "no candidate"),
        (None, "no reference"),
    ]
    assert found[2].pair == ("no nan here", "r")


def test_references_of_their_own_are_joined_by_study(tmp_path: Path) -> None:
    predictions = write(
        tmp_path / "p.csv", [{"study_id": "b", "candidate": "cb"}, {"study_id": "x", "candidate": "cx"}]
    )
    references = write(
        tmp_path / "r.json",
        [
            {"study_id": "a", "findings": "fa", "patient_id": "p1"},
            {"study_id": "b", "findings": "fb", "patient_id": "p2"},
        ],
    )
    found, _ = read(predictions, references)
    assert found == [
        Compared("b", "p2", ("cb", "Findings: fb")),
        Compared("x", "", None, "no reference"),
        Compared("a", "p1", None, "no candidate"),
    ]


STUDY = f'"study_id": "1", "reference": "r", "candidate": "{CANARY}"'


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("f.txt", "", ".csv, .jsonl or .json"),
        ("f.csv", "", "has no studies"),
        ("f.csv", "study_id,candidate,reference\n", "has no studies"),
        ("f.csv", f"{CANARY},b\n1,2\n", "row 2 has no study_id"),
        ("f.csv", f"study_id,text\n1,{CANARY}\n", "has no column candidate or model_prediction"),
        ("f.csv", f"study_id,candidate\n1,{CANARY}\n", "has no column reference or report or findings or"),
        ("f.csv", f"study_id,candidate,reference\n1,{CANARY},b,c\n", "row 2 has 4 columns, the header 3"),
        ("f.csv", f"study_id,candidate,reference\n1,{CANARY},b\n1,c,d\n", "row 3 has the study_id of row 2"),
        ("f.csv", f'study_id,candidate,reference\n1,"{CANARY}"x,b\n', "row 2 is no CSV"),
        ("f.csv", f"study_id,candidate,candidate\n1,{CANARY},b\n", "two columns have one name"),
        ("f.jsonl", f"{{{STUDY}}}\n{{{CANARY}\n", "line 2 is no JSON"),
        ("f.jsonl", f'"{CANARY}"\n', "line 1 is no object"),
        ("f.jsonl", f'{{{STUDY}, "candidate": "b"}}\n', "line 1 has the same key twice"),
        ("f.jsonl", f'{{{STUDY}, "patient_id": ["{CANARY}"]}}', "line 1: column patient_id holds no text"),
        ("f.jsonl", f'{{{STUDY}, "patient_id": "\\ud83d"}}', "column patient_id is no valid Unicode"),
        ("f.json", f'{{"a": "{CANARY}"}}', "record 1 is no object"),
        ("f.json", f'{{"a": {{}},\n"a": {{"x": "{CANARY}"}}}}', "the same key twice"),
        ("f.json", "3", "neither a list nor a mapping"),
        ("f.json", f'[\n{{"a": "{CANARY}",,}}]', "line 2 is no JSON"),
        ("f.json", "[" * 100_000, "nested too deep"),
        ("f.jsonl", f"{{{STUDY}}}".encode("utf-16"), "is not UTF-8"),
    ],
)
def test_a_wrong_file_is_refused_by_place_and_without_its_text(
    tmp_path: Path, name: str, content: str | bytes, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as refused:
        read(str(path))
    assert said in str(refused.value)
    assert name in str(refused.value)
    assert CANARY not in f"{refused.value!s} {refused.value!r}"
    assert "\n" not in str(refused.value)
    assert CANARY not in everything_shown(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("f.csv", 2 * "study_id,candidate,reference\na,b,c\n", "row 4 has the study_id of row 2"),
        ("f.jsonl", 2 * '{"study_id": "a", "candidate": "b"}\n', "line 2 has the study_id of line 1"),
        ("f.json", '{"a": {"report": "r"}, "a": {"report": "r"}}', "the same key twice"),
        ("f.json", 2 * '{"a": {"report": "r"}}\n', "line 2 is no JSON (column 1)"),
    ],
)
def test_two_runs_in_one_file_are_refused_unless_repeats_are_let_in(
    tmp_path: Path, name: str, content: str, said: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError) as refused:
        File(str(path))
    assert said in str(refused.value)
    file = File(str(path), repeats=True)
    assert list(file.records) == ["a"]
    assert (file.doubled, file.differing) == (1, 0)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file at"):
        read(str(tmp_path / "absent.csv"))


def test_a_form_that_the_file_cannot_give_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "file.csv", [{"study_id": "a", "candidate": "c", "impression": "i"}])
    with pytest.raises(UserError, match="has no column findings or section_findings"):
        read(path, form="findings")
    with pytest.raises(UserError, match="has no column reference or report"):
        read(path, form="given")


def test_a_spreadsheets_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    path = tmp_path / "file.csv"
    path.write_bytes("\ufeffstudy_id,candidate,reference\r\na,b,c\r\n".encode())
    assert read(str(path))[0] == [Compared("a", "", ("b", "c"))]


ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=9)


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            *[st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=9)] * 2
        )
    ),
    st.sampled_from(["csv", "jsonl", "json"]),
)
def test_any_text_comes_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, texts: list[tuple[str, str]], ending: str
) -> None:
    rows = [
        {"study_id": str(n), "candidate": a, "reference": b} for n, (a, b) in enumerate([("x", "y"), *texts])
    ]
    found, _ = read(write(tmp_path_factory.mktemp("any") / f"file.{ending}", rows))
    for study, row in zip(found, rows, strict=True):
        whole = all(row[name].strip().lower() not in ("", "nan") for name in ("candidate", "reference"))
        assert study.pair == ((row["candidate"], row["reference"]) if whole else None)
        assert bool(study.reason) != whole
