"""CheXpert Plus: look-alike tables with made-up text, one test per trap of the real one."""

from __future__ import annotations

import csv
import io
import pickle
import traceback
import tracemalloc
from datetime import date, datetime
from pathlib import Path

import fsspec
import numpy as np
import pytest

from unirg.cohort import imaging, priors
from unirg.cohort.corpora import Dropped, UnreadableImage
from unirg.cohort.corpora.chexpert_plus import TABLE, CheXpertPlus, exam_date
from unirg.cohort.corpora.source import MAX_ROW
from unirg.errors import UserError
from unirg.study import Image, Study

FILM = imaging.encode_png(np.arange(64, dtype=np.uint8).reshape(8, 8))
HEADER = [
    *("path_to_image", "path_to_dcm", "frontal_lateral", "ap_pa", "deid_patient_id"),
    *("patient_report_date_order", "report", "section_narrative", "section_clinical_history"),
    *("section_history", "section_comparison", "section_technique", "section_procedure_comments"),
    *("section_findings", "section_impression", "section_end_of_impression", "section_summary"),
    *("section_accession_number", "age", "sex", "race", "ethnicity", "interpreter_needed"),
    *("insurance_type", "recent_bmi", "deceased", "split"),
]
LEAK = "THE WHOLE REPORT"
Row = dict[str, str]


def row(patient: int, study: int, view: str = "view1_frontal", **changed: str) -> Row:
    path = f"train/patient{patient:05d}/study{study}/{view}"
    return {
        **dict.fromkeys(HEADER, ""),
        "path_to_image": f"{path}.jpg",
        "path_to_dcm": f"{path}.dcm",
        "frontal_lateral": "Frontal" if "frontal" in view else "Lateral",
        "ap_pa": "AP" if "frontal" in view else "",
        "deid_patient_id": f"patient{patient:05d}",
        "patient_report_date_order": str(study),
        "report": f"NARRATIVE: \nRADIOGRAPHIC EXAMINATION OF THE CHEST: {study}/8/2010 \n \n{LEAK}",
        "section_narrative": LEAK,
        "section_findings": "",
        "section_impression": '\n1. Lungs are clear.\n2. As "before", no change.\n',
        "section_accession_number": "1",
        "age": "63.0",
        "sex": "Female",
        "race": "White, non-Hispanic",
        "split": "train",
        **changed,
    }


def csv_of(*rows: Row, header: list[str] = HEADER) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, header, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def corpus(root: Path, table: str | bytes, *images: str) -> CheXpertPlus:
    root.mkdir(parents=True, exist_ok=True)
    (root / TABLE).write_bytes(table.encode() if isinstance(table, str) else table)
    for name in images:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(FILM)
    return CheXpertPlus(str(root))


def of_rows(root: Path, *rows: Row, tree: str = "PNG/PNG") -> CheXpertPlus:
    """The table with every image that it names as a PNG."""
    images = [f"{tree}/{each['path_to_image'].removesuffix('.jpg')}.png" for each in rows]
    return corpus(root, csv_of(*rows), *images)


def studies(adapter: CheXpertPlus) -> dict[str, Study]:
    records = list(adapter.records())
    assert all(isinstance(record, Study) for record in records), records
    return {record.study_id: record for record in records if isinstance(record, Study)}


def dropped(adapter: CheXpertPlus) -> dict[str, str]:
    return {each.study_id: each.reason for each in adapter.records() if isinstance(each, Dropped)}


def test_the_table_has_the_columns_of_the_fact_sheet() -> None:
    assert len(HEADER) == 27


def test_the_rows_of_a_study_become_one_study_though_they_are_not_adjacent(tmp_path: Path) -> None:
    found = studies(
        of_rows(
            tmp_path, row(7, 1, "view2_lateral"), row(8, 1), row(7, 1), row(7, 2), row(7, 1, "view3_frontal")
        )
    )
    assert list(found) == ["patient00007_study1", "patient00008_study1", "patient00007_study2"]
    first = found["patient00007_study1"]
    assert (first.corpus, first.patient_id, first.institution) == (
        "chexpert_plus",
        "patient00007",
        "stanford",
    )
    assert (first.age, first.sex, first.race) == (63, "F", "White, non-Hispanic")
    assert sorted(str(image.uri)[-17:-4] for image in first.images) == [
        "view1_frontal",
        "view2_lateral",
        "view3_frontal",
    ]


def test_the_key_image_is_pa_before_ap_before_unknown_then_by_name_whatever_the_files_order(
    tmp_path: Path,
) -> None:
    rows = [
        row(7, 1, "view2_lateral"),
        row(7, 1, "view1_frontal", ap_pa=""),
        row(7, 1, "view4_frontal", ap_pa="AP"),
        row(7, 1, "view3_frontal", ap_pa="AP"),
        row(7, 1, "view5_frontal", ap_pa="PA"),
    ]
    for number, order in enumerate((rows, rows[::-1])):
        (study,) = studies(of_rows(tmp_path / str(number), *order)).values()
        assert [str(image.uri)[-17:-4] for image in study.images] == [
            *("view5_frontal", "view3_frontal", "view4_frontal", "view1_frontal", "view2_lateral")
        ]
        assert study.key_image is study.images[0]
        assert [image.projection for image in study.images] == ["PA", "AP", "AP", None, None]


def test_frontal_lateral_decides_the_view_and_ap_pa_only_the_projection(tmp_path: Path) -> None:
    rows = [
        row(7, 1, "view1_lateral", ap_pa="AP"),
        row(7, 1, "view2_frontal", ap_pa="LL"),
        row(7, 1, "view3_frontal", frontal_lateral="", ap_pa="PA"),
    ]
    (study,) = studies(of_rows(tmp_path, *rows)).values()
    shown = {str(image.uri)[-17:-4]: (image.view, image.projection) for image in study.images}
    assert shown == {
        "view1_lateral": ("lateral", None),
        "view2_frontal": ("frontal", None),
        "view3_frontal": ("frontal", "PA"),
    }


def test_the_key_is_read_out_of_the_path_and_not_from_the_accession_number(tmp_path: Path) -> None:
    found = studies(of_rows(tmp_path, row(7, 1), row(9, 2)))
    assert list(found) == ["patient00007_study1", "patient00009_study2"]


def test_texts_come_from_the_sections_and_never_from_the_narrative_or_the_report(tmp_path: Path) -> None:
    rows = [
        row(1, 1, section_clinical_history="Cough.", section_history="Old.", section_comparison="None."),
        row(2, 1, section_history="Fever."),
        row(3, 1, section_findings="\nHeart is normal.\nLungs are clear.", section_impression=""),
    ]
    both, history, findings = studies(of_rows(tmp_path, *rows)).values()
    assert (both.indication, both.comparison, both.findings) == ("Cough.", "None.", None)
    assert both.impression == '1. Lungs are clear.\n2. As "before", no change.'
    assert history.indication == "Fever."
    assert (findings.findings, findings.impression) == ("Heart is normal.\nLungs are clear.", None)
    assert LEAK not in str([study.model_dump() for study in (both, history, findings)])


def test_of_rows_that_disagree_the_first_in_the_file_speaks(tmp_path: Path) -> None:
    other = row(
        7, 1, "view2_frontal", section_impression="Other.", age="20", sex="Male", race="Asian", ap_pa="PA"
    )
    (study,) = studies(of_rows(tmp_path, row(7, 1), other)).values()
    assert (study.age, study.sex, study.race) == (63, "F", "White, non-Hispanic")
    assert str(study.impression).startswith("1. Lungs")
    assert len(study.images) == 2


def test_valid_is_the_test_split_as_on_rexrank_and_train_trains(tmp_path: Path) -> None:
    found = studies(of_rows(tmp_path, row(7, 1), row(8, 1, split="valid")))
    assert [study.split for study in found.values()] == ["train", "test"]
    assert dropped(of_rows(tmp_path, row(7, 1, split="holdout"))) == {"patient00007_study1": "unknown split"}


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["PNG/{}.png", "{}.jpg", "DICOM/{}.dcm"], "PNG/{}.png"),
        (["{}.jpg", "DICOM/{}.dcm"], "{}.jpg"),
        (["DICOM/{}.dcm"], "DICOM/{}.dcm"),
        (["a/{}.png", "b/{}.png"], "a/{}.png"),
    ],
)
def test_the_jpg_of_the_table_is_found_as_png_else_jpg_else_dicom(
    tmp_path: Path, files: list[str], chosen: str
) -> None:
    path = "train/patient00007/study1/view1_frontal"
    adapter = corpus(tmp_path, csv_of(row(7, 1)), *[name.format(path) for name in files])
    (study,) = studies(adapter).values()
    assert [image.uri for image in study.images] == [chosen.format(path)]
    assert np.array_equal(adapter.read(study.images[0]), np.arange(64, dtype=np.uint8).reshape(8, 8))


def test_a_dicom_is_found_under_the_name_of_its_own_column(tmp_path: Path) -> None:
    path = "train/patient00007/study1/IM0001.dcm"
    (study,) = studies(corpus(tmp_path, csv_of(row(7, 1, path_to_dcm=path)), f"d/{path}")).values()
    assert study.images[0].uri == f"d/{path}"
    other = corpus(tmp_path, csv_of(row(8, 1, path_to_dcm=path)))
    assert dropped(other) == {"patient00008_study1": "missing image"}


def test_a_missing_frontal_drops_the_study_and_a_missing_lateral_does_not(tmp_path: Path) -> None:
    table = csv_of(row(1, 1), row(1, 1, "view2_lateral"), row(2, 1), row(2, 1, "view2_lateral"))
    folder = "PNG/train/patient0000{}/study1/{}.png"
    adapter = corpus(tmp_path, table, folder.format(1, "view1_frontal"), folder.format(2, "view2_lateral"))
    kept, missing = adapter.records()
    assert isinstance(kept, Study)
    assert len(kept.images) == 1
    assert missing == Dropped("patient00002_study1", "missing image")


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (
            "NARRATIVE:\nRADIOGRAPHIC EXAMINATION OF THE CHEST: 2/8/2010\n\nCLINICAL HISTORY: x",
            date(2010, 2, 8),
        ),
        ("narrative: chest, two views: 12/31/09 5:40 AM  COMPARISON: 12/30/09", date(2009, 12, 31)),
        ("CHEST 1 VIEW 2010-02-08 FINDINGS: none", date(2010, 2, 8)),
        ("CHEST: 2/8/2010, again 2/8/2010", date(2010, 2, 8)),
        ("CHEST: 2/8/2010 and 2/9/2010", None),
        ("CHEST: 13/8/2010", None),
        ("CHEST: 2/30/2010", None),
        ("CHEST: COMPARISON: 2/8/2010", None),
        ("Comparison 2/8/2010 nothing else", None),
        ("IMPRESSION: Compared with 2/8/2010", None),
        ("CHEST: 11 January 24th", None),
        ("CHEST: 1/2 and 12/8/2010/3", None),
        (" " * 500 + "2/8/2010", None),
        ("", None),
    ],
)
def test_only_a_date_in_the_reports_head_is_the_exams(head: str, found: date | None) -> None:
    assert exam_date(head) == found


def test_dates_order_a_patients_studies_and_not_the_ordinal_that_contradicts_them(tmp_path: Path) -> None:
    later = row(7, 1, patient_report_date_order="1", report="CHEST: 5/1/2012 HISTORY: x")
    earlier = row(7, 2, patient_report_date_order="2", report="CHEST: 4/1/2012 HISTORY: x")
    first, second = priors.link(studies(of_rows(tmp_path, later, earlier)).values())
    assert (first.acquired_at, first.acquired_basis) == (datetime(2012, 5, 1), "report_date")
    assert first.prior_study_id == second.study_id
    assert second.prior_study_id is None


def test_a_patient_of_whom_one_study_has_no_date_is_ordered_by_ordinals_alone(tmp_path: Path) -> None:
    rows = [
        row(7, 1, patient_report_date_order="2", report="CHEST: 5/1/2012"),
        row(7, 2, patient_report_date_order="1", report="CHEST, no date."),
        row(7, 3, patient_report_date_order="3.0", report="CHEST: 4/1/2012"),
        row(8, 1, report="CHEST: 4/1/2012"),
    ]
    linked = priors.link(studies(of_rows(tmp_path, *rows)).values())
    assert [study.acquired_basis for study in linked] == ["ordinal", "ordinal", "ordinal", "report_date"]
    assert [study.encounter for study in linked] == [2, 1, 3, 1]
    assert linked[2].prior_study_id == linked[0].study_id


def test_studies_of_one_date_or_one_ordinal_are_no_priors_of_each_other(tmp_path: Path) -> None:
    dated = [row(7, n, report="CHEST: 5/1/2012") for n in (1, 2)]
    counted = [row(8, n, report="", patient_report_date_order="4") for n in (1, 2)]
    linked = priors.link(studies(of_rows(tmp_path, *dated, *counted)).values())
    assert [study.prior_study_id for study in linked] == [None] * 4


def test_without_date_and_ordinal_the_order_is_unknown(tmp_path: Path) -> None:
    for order in ("", "nan", "-1", "first", "1" * 40):
        (study,) = studies(of_rows(tmp_path, row(7, 1, report="", patient_report_date_order=order))).values()
        assert (study.acquired_at, study.acquired_basis) == (None, None)


def test_demographics_that_say_nothing_are_null_and_lose_no_study(tmp_path: Path) -> None:
    for age, sex, race in (("", "", ""), ("nan", "Unknown", "Unknown"), ("400", "?", "Patient Refused")):
        (study,) = studies(of_rows(tmp_path, row(7, 1, age=age, sex=sex, race=race))).values()
        assert (study.age, study.sex, study.race) == (None, None, None)


@pytest.mark.parametrize(
    "path",
    [
        "../patient00007/study1/view1_frontal.jpg",
        "/etc/patient00007/study1/view1_frontal.jpg",
        "c:/patient00007/study1/view1_frontal.jpg",
        "train/patient00007/study1/../../../secret.jpg",
        "train/patient00007/study1/view1\0_frontal.jpg",
        "train/patient00007/view1_frontal.jpg",
        "train/patientX/study1/view1_frontal.jpg",
        "train/patient00007/study1/view1_frontal.svg",
        "",
    ],
)
def test_a_row_whose_path_is_no_image_of_the_corpus_is_dropped_by_number(tmp_path: Path, path: str) -> None:
    adapter = corpus(tmp_path, csv_of(row(6, 1), row(7, 1, path_to_image=path)))
    assert dropped(adapter)["row-2"] == "unsafe or unknown image path"


def test_a_path_in_a_table_leads_nowhere_outside_even_if_a_file_is_there(tmp_path: Path) -> None:
    (tmp_path / "patient00007" / "study1").mkdir(parents=True)
    (tmp_path / "patient00007" / "study1" / "view1_frontal.png").write_bytes(FILM)
    adapter = corpus(
        tmp_path / "in", csv_of(row(7, 1, path_to_dcm="../patient00007/study1/view1_frontal.dcm"))
    )
    assert dropped(adapter) == {"patient00007_study1": "missing image"}
    with pytest.raises(UnreadableImage):
        adapter.read(Image(uri="../patient00007/study1/view1_frontal.png"))


def test_an_image_named_twice_counts_once(tmp_path: Path) -> None:
    (study,) = studies(of_rows(tmp_path, row(7, 1), row(7, 1))).values()
    assert len(study.images) == 1


def test_a_bad_row_costs_its_neighbours_nothing(tmp_path: Path) -> None:
    long, latin = "x" * (MAX_ROW + 1), "CAF\u00c9"
    rows = [row(n, 1) for n in range(1, 8)]
    rows[1]["section_impression"] = f'"{long}"\n'
    rows[2]["section_impression"] = latin
    rows[3]["section_impression"] = "y" * 200_000
    data = csv_of(*rows).encode().replace(latin.encode(), latin.encode("latin-1"))
    data = data.replace(b"train/patient00005", b"extra,train/patient00005", 1)
    data = data.replace(b"train/patient00006", b'"broken" train/patient00006', 1)
    images = [f"train/patient{n:05d}/study1/view1_frontal.png" for n in range(1, 8)]
    records = list(corpus(tmp_path, data, *images).records())
    assert [record if isinstance(record, Dropped) else record.study_id for record in records] == [
        "patient00001_study1",
        Dropped("row-2", "row too long"),
        Dropped("row-3", "not UTF-8"),
        Dropped("row-4", "row too long"),
        Dropped("row-5", "wrong number of columns"),
        Dropped("row-6", "broken CSV"),
        "patient00007_study1",
    ]


def test_a_text_that_looks_like_a_row_stays_a_text(tmp_path: Path) -> None:
    forged = csv_of(row(9, 9)).split("\r\n", 1)[1]
    (study,) = studies(of_rows(tmp_path, row(7, 1, section_impression=f"Clear.\n{forged}"))).values()
    assert "patient00009" in str(study.impression)


def test_a_quote_that_is_never_closed_is_an_error_that_shows_no_text(tmp_path: Path) -> None:
    table = csv_of(row(7, 1)) + 'train/patient00008/study1/view1_frontal.jpg,"SECRET\n' * 3
    with pytest.raises(UserError, match="quote is never closed; fetch it again") as raised:
        list(corpus(tmp_path, table).records())
    assert "SECRET" not in "".join(traceback.format_exception(raised.value, limit=0))


def test_a_missing_table_or_column_is_told(tmp_path: Path) -> None:
    header = [name for name in HEADER if name not in ("split", "section_findings")]
    with pytest.raises(UserError, match="section_findings, split; fetch the original"):
        list(corpus(tmp_path, csv_of(row(7, 1), header=header)).records())
    with pytest.raises(UserError, match="split; fetch the original"):
        list(corpus(tmp_path, csv_of(row(7, 1), header=[*HEADER, "split"])).records())
    with pytest.raises(UserError, match="no column"):
        list(corpus(tmp_path, "").records())
    (tmp_path / TABLE).unlink()
    with pytest.raises(UserError, match=f"no {TABLE}"):
        list(CheXpertPlus(str(tmp_path)).records())
    with pytest.raises(UserError, match="no such directory"):
        list(CheXpertPlus(str(tmp_path / "absent")).records())


def test_the_corpus_reads_the_same_from_another_file_system_and_after_pickling(tmp_path: Path) -> None:
    local = of_rows(tmp_path, row(7, 1), row(7, 2), row(8, 1, split="valid"))
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path) + "/", "/chexpert-plus-test/", recursive=True)
    try:
        remote = pickle.loads(pickle.dumps(CheXpertPlus("memory://chexpert-plus-test")))
        assert studies(remote) == studies(local)
        image = studies(remote)["patient00007_study1"].images[0]
        assert remote.read(image).shape == (8, 8)
        assert remote.fingerprint() == local.fingerprint()
    finally:
        memory.rm("/chexpert-plus-test", recursive=True)


def test_the_fingerprint_follows_the_table_and_the_images(tmp_path: Path) -> None:
    prints = [of_rows(tmp_path, row(7, 1)).fingerprint()]
    (tmp_path / "notes.txt").write_text("of no matter")
    assert CheXpertPlus(str(tmp_path)).fingerprint() == prints[0]
    prints.append(of_rows(tmp_path, row(7, 1), row(7, 2)).fingerprint())
    (tmp_path / "PNG/PNG/train/patient00007/study1/view1_frontal.png").write_bytes(FILM[::-1])
    prints.append(CheXpertPlus(str(tmp_path)).fingerprint())
    assert len(set(prints)) == 3


def test_texts_are_not_held_while_a_corpus_is_read(tmp_path: Path) -> None:
    rows = [row(n, 1, section_impression="x" * 80_000) for n in range(50)]
    adapter = of_rows(tmp_path, *rows)
    tracemalloc.start()
    count = sum(isinstance(record, Study) for record in adapter.records())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 50
    assert peak < 2_000_000  # the texts have 4 MB
