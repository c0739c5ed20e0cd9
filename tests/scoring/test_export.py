"""Predictions handed on: what is read back is what was predicted, marked as what it is, always the same."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
from fhir.resources.R4B.diagnosticreport import DiagnosticReport

from tests import toy
from tests.scoring.stub import DIGEST, Stub, completion
from tests.scoring.test_inputs import DATA, rexrank
from unirg import artifact, cli, prompts
from unirg.artifact import Artifact
from unirg.cohort.corpora import jsonstream
from unirg.cohort.corpora.rexrank import ReXrank
from unirg.errors import UserError
from unirg.evaluation import candidates
from unirg.metrics import pairs
from unirg.scoring import export_fhir, predictions
from unirg.scoring.archive import FAILURES, MODEL, NOTICE, PREDICTIONS, ScoreConfig, score
from unirg.scoring.export import export, plain
from unirg.scoring.export_sr import short, uid
from unirg.scoring.inputs import archive_of
from unirg.study import Study

CANARY = "QUILLFEATHER"
HOSTILE = [
    "Findings: Clear. Impression: Normal.",
    "no headings at all",
    "Impression: alone",
    "Findings: nul \x00 escape \x1b[2J bell \a del \x7f next line \x85",
    "Findings: line\nline\r\nline\ttab Impression: \\ back\\slash ^ = caret",
    "Findings: \u2028 \u2029 \u202e right to left \ufeff \U0001f600 e\u0301 \u4e2d\u6587 \uffff",
    'Findings: </div><script>alert(1)</script> &amp; "}],"status":"final" Impression: {{x}} %s',
    "Findings: " + "long " * 60_000,
    "\x00",
]


@pytest.fixture(scope="module")
def scored(cohort: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Hostile texts, one that was cut off, and a study that has none."""

    def script(stub: Stub, request: dict[str, Any]) -> Any:
        number = len(stub.asked) - 1
        if number == len(HOSTILE):
            return completion(request, text="Findings: cut", finish_reason="length")
        if number == len(HOSTILE) + 1:
            return completion(request, text=" ")
        return completion(request, text=HOSTILE[number] if number < len(HOSTILE) else f"Findings: {number}.")

    settings = ScoreConfig(max_tokens=16, concurrency=1, truncated="keep")
    return score(settings, cohort, Stub(script), str(tmp_path_factory.mktemp("exported")))


def said(scored: Artifact) -> list[dict[str, Any]]:
    return [row for batch in predictions.batches(scored) for row in batch]


def reports(path: Path) -> list[DiagnosticReport]:
    lines = path.read_text().splitlines()  # which U+2028 would end, too
    return [DiagnosticReport.model_validate_json(line) for line in lines]


def documents(folder: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in folder.glob("*/*.dcm")]


def texts(document: pydicom.Dataset) -> dict[str, list[str]]:
    """The texts of a document by the meaning of their names, in order."""
    found: dict[str, list[str]] = {}
    for item in document.ContentSequence:
        for one in [item, *item.get("ContentSequence", [])]:
            if one.ValueType == "TEXT":
                name = one.ConceptNameCodeSequence[0].CodeMeaning
                found.setdefault(name, []).append(one.TextValue)
    return found


def test_fhir_reports_are_read_back_as_they_were_predicted(scored: Artifact, tmp_path: Path) -> None:
    target = tmp_path / "reports.ndjson"
    assert export(scored, "fhir", str(target)) == {"reports": 23, "without": 1}
    found, rows = reports(target), said(scored)
    assert len({report.id for report in found}) == len(found) == len(rows) == 23
    for report, row in zip(found, rows, strict=True):
        assert report.imagingStudy[0].identifier.value == f"toy/{row['study_id']}"
        assert report.subject.identifier.value == f"toy/{row['patient_id']}"
        sections = {one.id: one.valueString for one in report.contained if one.id != "model"}
        findings, impression = prompts.split_sections(plain(row["text"]))
        assert (sections.get("findings"), sections.get("impression")) == (findings, impression)
        assert [one.reference for one in report.result] == [f"#{name}" for name in sections]
        assert report.conclusion.endswith(impression or findings or "")


def test_every_fhir_report_is_preliminary_and_names_model_and_purpose(
    scored: Artifact, tmp_path: Path
) -> None:
    target = tmp_path / "reports.ndjson"
    export(scored, "fhir", str(target))
    for report in reports(target):
        assert report.status == "preliminary"
        assert report.conclusion.startswith("Research use, not for diagnosis.")
        assert (report.meta.tag[0].code, report.meta.tag[0].display) == ("research-use", NOTICE)
        assert report.meta.source == f"urn:unirg:predictions:{scored.digest}"
        model, *observations = report.contained
        assert (model.identifier[0].value, model.deviceName[0].name) == (DIGEST, "stub")
        for one in observations:
            assert (one.status, one.device.reference, one.note[0].text) == ("preliminary", "#model", NOTICE)
    (cut,) = [report for report in reports(target) if report.conclusion.endswith(" cut")]
    assert export_fhir.UNFINISHED in cut.conclusion
    assert cut.contained[1].note[1].text == export_fhir.UNFINISHED


def test_a_text_longer_than_fhir_allows_is_cut_and_says_so(
    scored: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_fhir, "LONGEST", 100)
    target = tmp_path / "reports.ndjson"
    export(scored, "fhir", str(target))
    (cut,) = [one for one in reports(target) if one.conclusion.endswith(export_fhir.CUT)]
    assert cut.contained[1].valueString == ("long " * 20) + export_fhir.CUT


def test_sr_documents_are_read_back_as_they_were_predicted(scored: Artifact, tmp_path: Path) -> None:
    folder = tmp_path / "sr"
    assert export(scored, "sr", str(folder)) == {"reports": 23, "without": 1}
    found = {one.StudyInstanceUID: one for one in documents(folder)}
    rows = said(scored)
    assert len(found) == len(rows)
    for row in rows:
        document = found[uid("study", "toy", row["study_id"])]
        findings, impression = prompts.split_sections(plain(row["text"]))
        told = texts(document)
        assert told.get("Finding", [None]) == [findings]
        assert told.get("Impression", [None]) == [impression]
        assert document.PatientID == row["patient_id"]
        assert (folder / "000000" / f"{document.SOPInstanceUID}.dcm").is_file()


def test_every_sr_document_is_preliminary_and_names_model_and_purpose(
    scored: Artifact, tmp_path: Path
) -> None:
    export(scored, "sr", str(tmp_path / "sr"))
    for path in (tmp_path / "sr").glob("*/*.dcm"):
        document = highdicom.sr.srread(path)
        assert isinstance(document, highdicom.sr.ComprehensiveSR)
        assert (document.PreliminaryFlag, document.VerificationFlag) == ("PRELIMINARY", "UNVERIFIED")
        assert (document.SeriesDescription, document.SoftwareVersions) == (NOTICE, DIGEST)
        told = texts(document)
        assert told["Comment"][0] == NOTICE
        assert told["Device Observer Serial Number"] == [DIGEST]
        # No image is known, so none is named; whose the ids are is told.
        assert document.get_evidence() == []
        assert "pseudonyms" in told["Comment"][-1]
        cut = told["Finding"] == ["cut"] if "Finding" in told else False
        assert document.CompletionFlag == ("PARTIAL" if cut else "COMPLETE")
        assert document.PatientIdentityRemoved == "YES"
        assert document.PatientName == ""


def test_the_same_predictions_are_the_same_bytes_at_another_time(scored: Artifact, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    program = (
        "import sys\nfrom unirg.artifact import open_artifact\n"
        "from unirg.scoring.export import FORMS, export\n"
        "for form in FORMS:\n    export(open_artifact(sys.argv[1]), form, f'{sys.argv[2]}/{form}')\n"
    )
    for folder, zone, seed in ((first, "UTC", "1"), (second, "Asia/Tokyo", "2")):
        folder.mkdir()
        environment = {**os.environ, "TZ": zone, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", program, scored.uri, str(folder)]
        subprocess.run(command, check=True, env=environment)
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(names) == 23 + 3
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_a_rexrank_file_comes_back_with_predictions_and_nothing_changed(tmp_path: Path, store: str) -> None:
    file = rexrank(tmp_path / "rexrank")
    archive = archive_of(str(file), "", store, ["size=64", "workers=1"])
    replies = iter(["Findings: One.\x00 Impression: \U0001f600", "Findings: Two."])
    settings = ScoreConfig(max_tokens=16, concurrency=1)
    made = score(settings, archive, Stub(lambda _, request: completion(request, text=next(replies))), store)
    target = tmp_path / "rexrank" / "ReXRank_IUXray_valid.json"  # as its adapter wants them called
    assert export(made, "rexrank", str(target)) == {"reports": 2, "without": 1}

    before, after = json.loads(file.read_text()), json.loads(target.read_text())
    assert list(after) == list(before)
    added = {key: (study.pop("model_prediction"), study.pop("notice")) for key, study in after.items()}
    assert {notice for _, notice in added.values()} == {NOTICE}
    assert [text for text, _ in added.values()] == [
        "Findings: One.\x00 Impression: \U0001f600",
        "Findings: Two.",
        "",  # its image was missing, so it was never asked about
    ]
    # NaN, which is not equal to itself, is written as it was.
    assert json.dumps(after) == json.dumps(before)
    assert math.isnan(after["CXR1_IM-0001"]["section_findings"])

    read = [study for study in ReXrank(str(target)).records() if isinstance(study, Study)]
    assert [(study.study_id, study.findings) for study in read] == [
        (study.study_id, study.findings) for study in ReXrank(str(file)).records() if isinstance(study, Study)
    ]
    compared, _ = pairs.read(str(target))
    assert compared[0].pair == ("Findings: One.\x00 Impression: \U0001f600", "Findings: Clear.")
    system = candidates.policy("stub", made, read[:2])
    assert {key: text for key, (text, _) in added.items() if text} == dict(system.texts["report"])


@pytest.mark.real_data
@pytest.mark.skipif(not (DATA / "rexrank").is_dir(), reason="no ReXrank files at ../shared/data")
@pytest.mark.parametrize("split", ["test", "valid"])
def test_rexranks_own_file_comes_back_value_for_value(tmp_path: Path, split: str) -> None:
    source = DATA / "rexrank" / f"ReXRank_IUXray_{split}.json"
    before = json.loads(source.read_text())
    made = archive(str(tmp_path / "store"), len(before), ids=sorted(before)[1:])
    target = tmp_path / source.name
    assert export(made, "rexrank", str(target), str(source)) == {"reports": len(before) - 1, "without": 1}
    after = json.loads(target.read_text())
    for study in after.values():
        assert study.pop("notice") == NOTICE
        assert isinstance(study.pop("model_prediction"), str)
    assert json.dumps(after) == json.dumps(before)


def test_an_archive_that_is_no_rexrank_file_takes_its_form(
    scored: Artifact, cohort: Artifact, tmp_path: Path
) -> None:
    target = tmp_path / "submission.json"
    assert export(scored, "rexrank", str(target)) == {"reports": 23, "without": 1}
    found = json.loads(target.read_text())
    assert {key: study["model_prediction"] for key, study in found.items() if study["model_prediction"]} == {
        row["study_id"]: row["text"] for row in said(scored)
    }
    first = toy.study(0, "test")
    assert found["s00000"]["report"] == prompts.report(first)
    assert found["s00000"]["context"] == f"Indication: {first.indication}"
    assert found["s00000"]["frontal_lateral"] == ["Frontal"]


def test_a_source_that_was_not_scored_is_refused_and_nothing_is_left(
    scored: Artifact, tmp_path: Path
) -> None:
    other = rexrank(tmp_path / "rexrank")
    for source, words in (
        (other, "23 predictions are of studies that .* lacks"),
        ("no.json", "no such file"),
    ):
        with pytest.raises(UserError, match=words):
            export(scored, "rexrank", str(tmp_path / "out.json"), str(source))
    with pytest.raises(UserError, match="source is for the form rexrank"):
        export(scored, "fhir", str(tmp_path / "out.json"), str(other))
    assert {path.name for path in tmp_path.iterdir()} == {"rexrank"}


@pytest.mark.parametrize("form", ["fhir", "sr", "rexrank"])
def test_what_is_there_stays_unless_it_is_the_same_or_may_go(
    scored: Artifact, tmp_path: Path, form: str
) -> None:
    target = tmp_path / "out"
    for _ in range(2):
        export(scored, form, str(target))
    whole = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    victim = next(path for path in whole if path.name != "export.json")
    victim.write_bytes(b"another")
    with pytest.raises(UserError, match="holds something else"):
        export(scored, form, str(target))
    assert victim.read_bytes() == b"another"
    export(scored, form, str(target), overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == whole


def test_a_folder_that_no_export_made_is_never_replaced(scored: Artifact, tmp_path: Path) -> None:
    (tmp_path / "home" / "thesis.txt").parent.mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    for form in ("sr", "fhir", "rexrank"):
        with pytest.raises(UserError, match="holds something else"):
            export(scored, form, str(tmp_path / "home"), overwrite=True)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize("form", ["fhir", "sr", "rexrank"])
def test_an_export_that_fails_midway_leaves_nothing(
    scored: Artifact, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = predictions.batches

    def breaks(made: Artifact, columns: Any = None) -> Any:
        yield next(rows(made, columns))[:10]
        raise UserError("the store is gone")

    monkeypatch.setattr(predictions, "batches", breaks)
    with pytest.raises(UserError, match="the store is gone"):
        export(scored, form, str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_told_without_a_report(
    scored: Artifact, cohort: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, words in (
        (["--form", "pdf", "--output", str(tmp_path / "x")], "choose one of rexrank, fhir, sr"),
        (["--form", "fhir", "--output", str(tmp_path / "no" / "x")], "is no folder"),
        (["--form", "fhir", "--output", "s3://bucket/x"], "is not a local path"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(["export", "--predictions", scored.uri, *arguments])
        assert ended.value.code == 2
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["export", "--predictions", cohort.uri, "--form", "fhir", "--output", str(tmp_path / "x")])
    assert "this needs score" in capsys.readouterr().err


def test_a_short_text_of_dicom_keeps_long_ids_apart() -> None:
    one, two = short(CANARY * 10 + "1"), short(CANARY * 10 + "2")
    assert one != two
    assert len(one) == 64
    assert short("a\\b") == "a/b"


def test_memory_does_not_depend_on_how_many_predictions_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "BATCH", 32)
    monkeypatch.setattr(jsonstream, "CHUNK", 2**12)
    peaks: dict[str, list[int]] = {"fhir": [], "rexrank": []}
    for studies in (64, 65, 256):  # the first only fills caches
        made = archive(str(tmp_path / "store"), studies)
        source = tmp_path / f"ReXRank_{studies}.json"
        source.write_text(json.dumps({f"s{number}": {"report": "x" * 200} for number in range(studies)}))
        for form, found in peaks.items():
            target = str(tmp_path / f"{form}-{studies}")
            tracemalloc.start()
            counts = export(made, form, target, str(source) if form == "rexrank" else "")
            found.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            assert counts == {"reports": studies, "without": 0}
    for form, (_, few, many) in peaks.items():
        assert many < 1.5 * few, (form, few, many)


def archive(store: str, studies: int, name: str = "m", ids: Sequence[str] = ()) -> Artifact:
    """Predictions in the same form as `score` leaves them."""
    values: dict[str, Any] = {
        **dict.fromkeys(("corpus", "institution", "patient_id", "sections"), "drawn"),
        **{
            "split": "test",
            "with_prior": False,
            "text": "Findings: " + "clear " * 30,
            "finish_reason": "stop",
        },
        **{"prompt_tokens": 1, "completion_tokens": 1, "prompt_digest": "e" * 64},
        **{"model_digest": DIGEST, "notice": NOTICE},
    }
    with artifact.draft(store, "score", 2, ScoreConfig(limit=studies), {}) as draft:
        for folder in ("predictions", "logs"):
            (draft.out / folder).mkdir()
        drawn = [values | {"study_id": one} for one in ids or [f"s{n}" for n in range(studies)]]
        rows = pa.Table.from_pylist(drawn, PREDICTIONS)
        pq.write_table(rows, draft.out / "predictions" / "000000.parquet", row_group_size=32)
        pq.write_table(pa.Table.from_pylist([], FAILURES), draft.out / "failures.parquet")
        told = {"name": name, "digest": DIGEST, "basis": "b", "finished_at": "2026-11-23T10:00:00+00:00"}
        (draft.out / MODEL).write_text(json.dumps(told))
        return draft.commit()


def test_a_models_name_may_be_anything(tmp_path: Path) -> None:
    made = archive(str(tmp_path / "store"), 1, "\\ org/model\n\x00" + "x" * 100)
    export(made, "sr", str(tmp_path / "sr"))
    export(made, "fhir", str(tmp_path / "fhir"))
    (document,), (report,) = documents(tmp_path / "sr"), reports(tmp_path / "fhir")
    assert report.contained[0].deviceName[0].name == "\\ org/model \ufffd" + "x" * 100
    assert texts(document)["Device Observer Name"] == ["\\ org/model \ufffd" + "x" * 100]
    assert document.ManufacturerModelName.startswith("/ org/model \ufffdxxx")
    assert len(document.ManufacturerModelName) == 64


def test_predictions_that_do_not_say_who_wrote_them_are_refused(tmp_path: Path) -> None:
    made = archive(str(tmp_path / "store"), 1)
    bare = Artifact(made.uri, made.manifest.model_copy(update={"logs": {}}))
    for form in ("fhir", "sr"):
        with pytest.raises(UserError, match="does not say who wrote it: score it again"):
            export(bare, form, str(tmp_path / "out"))


def test_rows_say_the_same_as_the_artifact(scored: Artifact) -> None:
    assert pq.read_schema(scored.path("predictions/000000.parquet")).metadata[b"notice"] == NOTICE.encode()
    assert {row["notice"] for row in said(scored)} == {NOTICE}
