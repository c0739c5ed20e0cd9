"""Prediction files without a cohort: what they hold is evaluated, what they lack is said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.canary import CANARY, everything_shown
from unirg.errors import UserError
from unirg.evaluation import files, scores
from unirg.evaluation.reports import reports
from unirg.metrics.engine import Engine
from unirg.study import SAFE_ID


def rexrank(path: Path, predictions: dict[str, str], **changes: Any) -> str:
    """A submission over studies with one reference each."""
    record = {"report": "whole", "section_findings": "The lungs are clear.", "section_impression": "Normal."}
    path.write_text(
        json.dumps(
            {key: {**record, "model_prediction": said, **changes} for key, said in predictions.items()}
        )
    )
    return str(path)


def test_a_pair_of_submissions_is_evaluated_with_two_lines(tmp_path: Path) -> None:
    said = {f"CXR{n}_IM-{n}": "Findings: The lungs are clear. Impression: Normal." for n in range(30)}
    good = rexrank(tmp_path / "good.json", said)
    bad = rexrank(tmp_path / "bad.json", dict.fromkeys(said, "Large heart."))

    found = files.alone({"good": good, "bad": bad}, corpus="rexrank_iu_xray")
    measured = scores.metrics(["bleu2", "rouge_l"], {"bleu2": 1.0})
    scored = scores.score(
        found.studies, found.systems, measured, {"bleu2": 1.0}, Engine(["bleu2", "rouge_l"])
    )

    result = reports(scored, resamples=200)
    (report, findings) = result["groups"]
    assert report["corpus"] == "rexrank_iu_xray"
    assert report["values"]["good"]["bleu2"]["mean"] == findings["values"]["good"]["bleu2"]["mean"] == 1
    assert [place["system"] for place in report["order"]] == ["good", "bad"]
    how = {record["metric"]: record["how"] for record in result["absent"]}
    assert "unirg weights fetch chexbert" in how["sembscore"]
    assert "judge_url" in how["errors"]
    assert {"bleu2", "rouge_l"}.isdisjoint(how)


def test_references_come_from_the_first_file_that_has_them(tmp_path: Path) -> None:
    bare = tmp_path / "bare.csv"
    bare.write_text("study_id,candidate\na,x\nb,y\nc,z\n")
    first = rexrank(tmp_path / "first.json", {"a": "x"})
    second = rexrank(tmp_path / "second.json", {"a": "x", "b": "y"}, section_findings="Other.")
    found = files.alone({"bare": str(bare), "first": first, "second": second})
    assert [(study.study_id, study.findings) for study in found.studies] == [
        ("a", "The lungs are clear."),
        ("b", "Other."),
        ("c", None),
    ]
    assert found.notes == [
        "no cohort was named: there are no baselines, no priors and no images",
        "no file names patients: the intervals take every study for a patient of its own",
        "1 of 3 studies have no reference and are not scored",
        "1 studies have another reference in another file: the first counts",
    ]
    assert [list(system.texts["report"]) for system in found.systems] == [["a", "b", "c"], ["a"], ["a", "b"]]


def test_a_file_of_references_counts_alone_and_keeps_what_nobody_predicted(tmp_path: Path) -> None:
    said = rexrank(tmp_path / "said.json", {"a": "x"}, section_findings="Not this.")
    expected = tmp_path / "references.csv"
    expected.write_text(
        "study_id,reference,patient_id\na,FINDINGS: This. IMPRESSION: That.,p 1\nb,Bare.,p2\n"
    )
    found = files.alone({"one": said}, str(expected))
    assert [(study.findings, study.impression) for study in found.studies] == [
        ("This.", "That."),
        ("Bare.", None),
    ]
    assert found.systems[0].reasons == {"b": "no prediction: its file has none of this study"}
    assert "1 references have no heading: their whole text counts as findings" in found.notes
    assert not any("patient" in note or "another file" in note for note in found.notes)
    assert found.studies[1].patient_id == "p2"
    assert re.fullmatch("id-[0-9a-f]{24}", found.studies[0].patient_id)


def test_an_id_that_is_not_safe_to_print_is_replaced_alike_in_every_file(tmp_path: Path) -> None:
    names = ["Doe, Jane", "研究", "../x", "a" * 129, "plain-1"]
    one = rexrank(tmp_path / "one.json", dict.fromkeys(names, "x"))
    two = rexrank(tmp_path / "two.json", dict.fromkeys(reversed(names), "x"))
    found = files.alone({"one": one, "two": two})
    ids = [study.study_id for study in found.studies]
    assert len(set(ids)) == 5
    assert ids[-1] == "plain-1"
    assert all(re.fullmatch(SAFE_ID, study_id) for study_id in ids)
    assert all(set(system.texts["report"]) == set(ids) for system in found.systems)
    assert not any(system.reasons for system in found.systems)


def test_studies_that_name_no_patient_among_others_that_do_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "some.csv"
    path.write_text("study_id,candidate,reference,patient_id\na,x,r,p1\nb,x,r,\nc,x,r,p1\n")
    notes = files.alone({"some": str(path)}).notes
    assert "1 of 3 studies name no patient: the intervals take each of them for a patient of its own" in notes


def test_a_corpus_that_is_no_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no name of a corpus"):
        files.alone({"one": rexrank(tmp_path / "f.json", {"a": "x"})}, corpus="a b")


def references(seed: int, size: int = 60, own: float = 0.6) -> list[str]:
    """Of studies as they come: a share are a patient's own, the others one of a few normal ones."""
    rng = np.random.default_rng(seed)
    normal = [f"Findings: Clear {n}." for n in range(5)]
    return [
        f"Findings: Mass of {n} mm." if rng.random() < own else normal[rng.integers(5)] for n in range(size)
    ]


@pytest.mark.parametrize("lost", [(), (3,), (3, 17)])
def test_two_runs_under_other_ids_are_known_by_their_references(
    tmp_path: Path, lost: tuple[int, ...]
) -> None:
    one = references(0)
    rows = [(f"s{n}", text) for n, text in enumerate(one)]
    rows += [(f"run2_s{n}", text) for n, text in enumerate(one) if n not in lost]
    path = tmp_path / "both.csv"
    path.write_text("study_id,candidate,reference\n" + "".join(f"{key},x,{text}\n" for key, text in rows))
    (system,) = files.alone({"both": str(path)}).systems
    assert system.doubled == 0
    assert system.echoed == sum(text.count("Mass") for n, text in enumerate(one) if n not in lost)


@pytest.mark.parametrize("seed", range(20))
def test_references_that_repeat_by_nature_are_no_second_run(seed: int) -> None:
    rng = np.random.default_rng(seed)
    assert files.echoed(references(seed)) == 0
    assert files.echoed(references(seed, own=0.1)) == 0
    assert files.echoed(["Findings: Clear."] * 60) == 0
    # Two films of each study, one after the other; and half of the patients with the same words twice.
    assert files.echoed([f"Mass of {n // 2} mm." for n in range(60)]) == 0
    assert files.echoed([f"Mass of {n % 30} mm." for n in rng.permutation(60)]) == 0
    assert files.echoed([]) == 0


def test_two_runs_in_a_file_do_not_stop_it(tmp_path: Path) -> None:
    path = tmp_path / "two.csv"
    path.write_text("study_id,candidate,reference\n" + 2 * "a,x,r\n" + "b,x,r\nb,y,r\n")
    found = files.alone({"two": str(path)})
    assert (found.systems[0].doubled, found.systems[0].differing) == (2, 1)
    assert len(found.studies) == 2


@pytest.mark.parametrize("missing", [None, float("nan"), "", "nan"])
def test_a_section_that_is_missing_is_left_out(tmp_path: Path, missing: Any) -> None:
    found = files.alone({"one": rexrank(tmp_path / "f.json", {"a": "x"}, section_impression=missing)})
    assert (found.studies[0].findings, found.studies[0].impression) == ("The lungs are clear.", None)


def test_half_a_surrogate_pair_in_a_reference_is_mended(tmp_path: Path) -> None:
    found = files.alone({"one": rexrank(tmp_path / "f.json", {"a": "x\ud83d"}, section_findings="a\ud83d")})
    engine = Engine(["bleu2"], cache=str(tmp_path / "cache.sqlite"))
    scored = scores.score(found.studies, found.systems, scores.metrics(["bleu2"], {}), {}, engine)
    assert np.isfinite(scored.values["one", "report", "bleu2"]).all()


@pytest.mark.parametrize(
    "named", [{}, {"one": "study_id,candidate\na,{}\n"}, {"one": "study_id,reference\na,{}\n"}]
)
def test_files_that_cannot_be_compared_are_refused_with_the_remedy(
    tmp_path: Path, named: dict[str, str]
) -> None:
    uris = {}
    for name, text in named.items():
        (tmp_path / f"{name}.csv").write_text(text.format(CANARY))
        uris[name] = str(tmp_path / f"{name}.csv")
    with pytest.raises(
        UserError, match=r"no prediction file|no reference for any study: add|no column cand"
    ) as no:
        files.alone(uris)
    assert CANARY not in everything_shown(no.value)
