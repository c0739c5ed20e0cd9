"""ReXrank's boards: read as published, refused by place, and what they prove about 1/RadCliQ-v1.

The figures are those of rajpurkarlab/ReXrank, boards of September 2025 (`findings_result_*.csv` and
`result_iu_xray.csv`); the whole of the boards is checked in `tests/metrics/test_radcliq.py` where they lie
beside the repository.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unirg.errors import UserError
from unirg.evaluation import leaderboard
from unirg.evaluation.leaderboard import INVERSE, Row
from unirg.metrics.radcliq import radcliq_v1

HEADER = (
    "Rank,Date,Model Name,Institution,Model URL,BLEU,BertScore,SembScore,RadGraph,1/RadCliQ-v1,RaTEScore,"
    "GREEN,1/FineRadScore"
)
FINDINGS = {
    "findings_result_gradienthealth.csv": """\
7,2024,MedVersa,Harvard,https://huggingface.co/hyzhou/MedVersa/tree/main,0.21,0.431,0.498,0.202,1.008,0.527,0.532,0.475
16,2024,MAIRA-2,Microsoft,https://huggingface.co/microsoft/maira-2,0.205,0.436,0.462,0.187,0.963,0.559,0.531,0.475
24,2025,MedGemma,Google,https://huggingface.co/google/medgemma-4b-it,0.2,0.427,0.479,0.223,1.008,0.617,0.566,0.457
25,2025,UniRG-CXR,Microsoft Research,https://example.org,0.291,0.538,0.576,0.298,1.621,0.622,0.476""",
    "findings_result_mimiccxr.csv": """\
7,2024,MedVersa,Harvard,,0.209,0.448,0.466,0.273,1.103,0.55,0.374,0.365
16,2024,MAIRA-2,Microsoft,,0.088,0.308,0.339,0.131,0.694,0.517,0.224,0.359
24,2025,MedGemma,Google,,0.165,0.346,0.339,0.159,0.744,0.549,0.293,0.349
25,2025,UniRG-CXR,Microsoft Research,,0.248,0.493,0.487,0.265,1.217,0.596,0.352""",
    "findings_result_iu_xray.csv": """\
7,2024,MedVersa,Harvard,,0.206,0.527,0.606,0.235,1.46,0.65,0.631,0.569
13,2024,LLM-CXR,KAIST,,0.033,0.186,0.057,0.023,0.486,0.28,0.025,0.302
20,2025,MoERad-IU,IIT Madras,,0.277,0.525,0.641,0.341,1.922,0.684,0.665,0.587
25,2025,UniRG-CXR,Microsoft Research,,0.265,0.565,0.659,0.286,1.977,0.69,0.639
""",
    "findings_result_chexpertplus.csv": """\
22,2025,RadPhi3.5Vision,Microsoft,,0.198,0.353,0.437,0.217,0.86,0.51,0.243,0.356
24,2025,MedGemma,Google,,0.147,0.328,0.325,0.137,0.706,0.511,0.246,0.337
25,2025,UniRG-CXR,Microsoft Research,,0.19,0.428,0.46,0.236,1.008,0.564,0.279,0
""",
}
REPORT = """\
1,2024,CheXpertPlus-MIMIC,Stanford,,0.227,0.449,0.594,0.187,1.111,0.57,0.681,0.615
2,2024,CheXpertPlus-CheX,Stanford,,0.198,0.394,0.55,0.211,0.995,0.604,0.706,0.568
3,2024,CheXpertPlus-CheX-MIMIC,Stanford,,0.244,0.476,0.598,0.232,1.249,0.606,0.694,0.588
4,2024,MedVersa,Harvard,,0.195,0.518,0.601,0.244,1.452,0.628,0.658,0.583
5,2023,RadFM,SJTU,,0.196,0.479,0.556,0.234,1.22,0.596,0.644,0.551
6,2024,GPT4V,OpenAI,,0.079,0.235,0.403,0.16,0.683,0.519,0.399,0.528
7,2025,UniRG-CXR,Microsoft Research,,0.295,0.574,0.653,0.285,2.007,0.669,0.668"""


@pytest.fixture
def boards(tmp_path: Path) -> Path:
    """Rows of the public boards, in a folder named as they are kept."""
    folder = tmp_path / "leaderboard_2025-09"
    folder.mkdir()
    for name, rows in {**FINDINGS, "result_iu_xray.csv": REPORT}.items():
        (folder / name).write_text(f"{HEADER}\n{rows}")
    return folder


def board(tmp_path: Path, text: str | bytes, name: str = "findings_result_iu_xray.csv") -> str:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_a_folder_gives_every_board_with_our_names(boards: Path) -> None:
    rows = leaderboard.read(str(boards))
    assert len(rows) == 22
    assert {(row.corpus, row.setting) for row in rows} == {
        ("rexrank_rexgradient", "findings"),
        ("rexrank_mimic_cxr", "findings"),
        ("rexrank_iu_xray", "findings"),
        ("rexrank_chexpert_plus", "findings"),
        ("rexrank_iu_xray", "report"),
    }
    (unirg,) = [
        row for row in leaderboard.of_corpus(rows, "mimic_cxr", "findings") if row.model == "UniRG-CXR"
    ]
    assert unirg == Row(
        "rexrank_mimic_cxr",
        "findings",
        "UniRG-CXR",
        "Microsoft Research",
        "2025",
        {
            **{"bleu2": 0.248, "bertscore": 0.493, "sembscore": 0.487, "radgraph": 0.265, INVERSE: 1.217},
            **{"ratescore": 0.596, "green": 0.352, "inverse_fineradscore": None},
        },
        "2025-09",
    )
    assert leaderboard.label(rows) == (
        "public board, 2025-09; other studies than ours where the cohort is another"
    )


def test_one_file_gives_its_board(boards: Path) -> None:
    rows = leaderboard.read(str(boards / "result_iu_xray.csv"))
    assert [row.model for row in rows][-1] == "UniRG-CXR"
    assert {row.setting for row in rows} == {"report"}


def test_a_reciprocal_of_zero_and_a_row_that_ends_early_are_missing(boards: Path) -> None:
    last = [row for row in leaderboard.read(str(boards)) if row.model == "UniRG-CXR"]
    assert len(last) == 5
    assert all(row.metrics["inverse_fineradscore"] is None for row in last)


def test_public_findings_rows_are_the_reciprocal_of_the_mean_and_not_the_mean_of_reciprocals(
    boards: Path,
) -> None:
    rows = [row for row in leaderboard.read(str(boards)) if row.setting == "findings"]
    assert len(rows) == 15
    for row in rows:
        assert row.agrees is True, row.model
        # The other reading needs reports of nearly one and the same quality: with a tenth of the spread that
        # the scale has between an identical report (-1.44) and an unrelated one (2.45), the mean of the
        # reciprocals is already outside what the row's digits allow.
        parts = [row.metrics[name] or 0.0 for name in ("radgraph", "bertscore", "sembscore", "bleu2")]
        mean = float(radcliq_v1(*parts))
        studies = mean + np.array([-0.39, 0.39]) / 2
        assert replace(row, metrics={**row.metrics, INVERSE: float(np.mean(1 / studies))}).agrees is False


def test_rows_whose_columns_do_not_belong_together_are_known(boards: Path) -> None:
    rows = leaderboard.read(str(boards / "result_iu_xray.csv"))
    assert [row.model for row in rows if row.agrees] == ["GPT4V", "UniRG-CXR"]


def test_a_row_without_one_of_the_parts_says_nothing_about_them(boards: Path) -> None:
    row = leaderboard.read(str(boards))[0]
    assert replace(row, metrics={**row.metrics, "radgraph": None}).agrees is None
    assert replace(row, metrics={**row.metrics, INVERSE: None}).agrees is None
    assert replace(row, metrics={**row.metrics, INVERSE: 1.2}).agrees is False


def test_ranks_are_the_sites_by_the_reciprocal_with_ties(boards: Path) -> None:
    rows = leaderboard.read(str(boards))
    found = leaderboard.ranked(leaderboard.of_corpus(rows, "rexgradient", "findings"))
    assert [(rank, row.model) for rank, row in found] == [
        (1, "UniRG-CXR"),
        (2, "MedGemma"),
        (2, "MedVersa"),
        (4, "MAIRA-2"),
    ]
    without = [replace(row, metrics={**row.metrics, INVERSE: None}) for rank, row in found if rank == 1]
    again = leaderboard.ranked([*without, *(row for rank, row in found if rank > 1)])
    assert [(rank, row.model) for rank, row in again][-1] == (4, "UniRG-CXR")


def test_a_board_stands_beside_its_corpus_only(boards: Path) -> None:
    rows = leaderboard.read(str(boards))
    named = leaderboard.of_corpus(rows, "rexrank_iu_xray", "report")
    assert len(named) == 7
    assert leaderboard.of_corpus(rows, "iu_xray", "report") == named
    for other in ("phantom", "rexrank_phantom", "xray", None):
        assert leaderboard.of_corpus(rows, other, "report") == []


def test_names_stay_as_text_whatever_they_hold(tmp_path: Path) -> None:
    hostile = '"<script>alert(1)</script>, =1+1 \u202e研究\nβ"'
    (row,) = leaderboard.read(board(tmp_path, f"\ufeff Model Name ,BLEU\r\n{hostile},.5\r\n\r\n"))
    assert row.model == "<script>alert(1)</script>, =1+1 \u202e研究 β"
    assert row.metrics["bleu2"] == 0.5
    assert (row.board, row.year, row.institution, row.agrees) == ("", "", "", None)
    assert leaderboard.label([row]).startswith("public board; other studies")


@pytest.mark.parametrize("nothing", ["", " ", "-", "NaN", "N/A"])
def test_a_metric_that_a_board_lacks_is_missing_and_no_number(tmp_path: Path, nothing: str) -> None:
    (row,) = leaderboard.read(board(tmp_path, f"Model Name,BLEU,RadGraph\na,{nothing},0.5\n"))
    assert (row.metrics["bleu2"], row.metrics["radgraph"]) == (None, 0.5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no rows"),
        ("Model Name,BLEU\n", "has no rows"),
        ("Model Name,BLEU\na,0.5\nb,0,5\n", "line 3, column 3: the line has 3 columns, the header 2"),
        ("Model Name,BLEU\na,zero\n", "line 2, column BLEU: 'zero' is no number"),
        ("Model Name,BLEU\na,inf\n", "line 2, column BLEU: 'inf' is no number"),
        ("Model Name,BLEU\na,1_0\n", "line 2, column BLEU: '1_0' is no number"),
        ("Model Name,BLEU\na,\u0660.\u0665\n", "line 2, column BLEU"),
        ("Model Name,BLEU\na,50%\n", "line 2, column BLEU"),
        ('Model Name,BLEU\na,"0,5"\n', "line 2, column BLEU"),
        ("Model Name,BLEU\na,1.5\n", "line 2, column BLEU: 1.5 is outside [0, 1]"),
        ("Model Name,1/RadCliQ-v1\na,9e999\n", "line 2, column 1/RadCliQ-v1: 9e999 is outside"),
        ("Model Name,BLEU\n'',0.1\n ,0.2\n", "line 3, column Model Name: it is empty"),
        ("Model Name,BLEU\na,0.1\nb,0.1\na,0.2\n", "line 4, column Model Name: line 2 has the same"),
        ('Model Name,BLEU\n"a\nb",0.1\n"a\nb",0.2\n', "line 5, column Model Name: line 3 has the same"),
        ("BLEU,Model Name\n0.1\n", "line 2, column Model Name: the line ends before it"),
        ("Model Name,BLUE\na,0.1\n", "line 1, column 'BLUE': no board has it"),
        ("Model Name,BLEU,BLEU\na,1,1\n", "line 1, column BLEU: two columns have this name"),
        ("Institution,BLEU\na,1\n", "line 1: a board has a column Model Name"),
        ("Model Name,Date\na,1\n", "line 1: a board has a column Model Name and columns of metrics"),
        ('Model Name,BLEU\na,"0.1"2\n', "line 2 is no CSV"),
        ('Model Name,BLEU\na,"0.1\n', "is no CSV"),
        ("Model Name,BLEU\nä,0.1\n".encode("latin-1"), "is not UTF-8 (byte 16)"),
    ],
)
def test_a_wrong_board_is_refused_by_file_line_and_column(
    tmp_path: Path, text: str | bytes, said: str
) -> None:
    uri = board(tmp_path, text)
    with pytest.raises(UserError) as refused:
        leaderboard.read(uri)
    assert said in str(refused.value)
    assert uri in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "name", ["board.csv", "result_phantom.csv", "result_iu_xray-valid.csv", "result_.csv"]
)
def test_a_file_that_is_not_named_as_a_board_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="not named as ReXrank names its boards"):
        leaderboard.read(board(tmp_path, "Model Name,BLEU\na,0.1\n", name))


@pytest.mark.parametrize("name", ["", "absent", "result_iu_xray.csv"])
def test_where_there_is_no_board_the_place_is_named(tmp_path: Path, name: str) -> None:
    place = str(tmp_path / name)
    with pytest.raises(UserError, match=r"no board|no file at") as refused:
        leaderboard.read(place)
    assert place in str(refused.value)


def test_a_range_is_the_catalogs(tmp_path: Path) -> None:
    (row,) = leaderboard.read(board(tmp_path, "Model Name,BertScore,SembScore\na,-5.5502,-1\n"))
    assert row.metrics["bertscore"] == -5.5502
    assert not any(math.isnan(value) for value in row.metrics.values() if value is not None)
