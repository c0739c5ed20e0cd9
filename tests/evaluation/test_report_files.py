"""`unirg report` of an evaluation without a cohort, and what it must be given of any evaluation."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.worlds import WRONG, World, bare
from unirg import artifact, cli
from unirg.artifact import Artifact
from unirg.errors import UserError
from unirg.evaluation.evaluate import EvaluateConfig, evaluate, opened
from unirg.evaluation.report.render import ReportConfig, report

CONFIG = EvaluateConfig(resamples=100, scores=("bleu2",), composite={"bleu2": 1}, suites=("reports",))


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], str]:
    """Exit code, lines of the output, what was told."""
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out.split(), err


def test_two_files_become_a_page_of_texts_by_two_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = [part for name, uri in bare(tmp_path).items() for part in ("--predictions", f"{name}={uri}")]
    store = ("--store", str(tmp_path / "store"))
    _, (evaluation,), _ = command(capsys, "evaluate", *named, "resamples=100", *store)
    code, (uri, page), told = command(capsys, "report", "--evaluation", evaluation, *named, *store)
    assert code == 0, told
    done = artifact.open_artifact(uri, "report")
    html = Path(page).read_text()
    numbers = json.loads(done.path("report.json").read_text())
    assert html.count('<article class="case') == len(numbers["cases"]) > 4
    assert "A pacemaker is seen" in html
    assert "The heart is enlarged" in html
    assert "<img" not in html
    given = {entry["input"]: entry for entry in numbers["provenance"]}
    used = artifact.open_artifact(evaluation).manifest.inputs
    assert set(given) == {"evaluation", "predictions:a", "predictions:b"}
    assert given["predictions:a"]["digest"] == used["predictions:a"].digest
    assert used["predictions:a"].digest[:16] in html


def test_references_in_a_file_of_their_own_are_shown_and_asked_for(tmp_path: Path) -> None:
    files, store = bare(tmp_path), str(tmp_path / "store")
    references = tmp_path / "references.csv"
    with references.open("w", newline="") as file:
        rows = [["study_id", "findings", "impression"]]
        csv.writer(file).writerows([*rows, *([f"s{n}", f"Marked {n}.", "Normal."] for n in range(30))])
    only = {"b": files["b"]}
    done = evaluate(CONFIG, None, opened(only), {}, store, references=str(references))
    made = report(ReportConfig(), done, None, opened(only), {}, store, str(references))
    assert re.search(r"Marked</mark>? ?\d+|Marked \d+", made.path("report.html").read_text())
    with pytest.raises(UserError, match="references is not what evaluation"):
        report(ReportConfig(), done, None, opened(only), {}, store)
    with pytest.raises(UserError, match="references is not what evaluation"):
        report(ReportConfig(), done, None, opened(only), {}, store, files["a"])


def test_files_that_changed_are_missing_or_were_never_evaluated_are_refused(
    world: World, tmp_path: Path
) -> None:
    files, store = bare(tmp_path), str(world.store)
    done = evaluate(CONFIG, None, files, {}, store)
    with pytest.raises(UserError, match="cohort is not what evaluation"):
        report(ReportConfig(), done, world.fill(2).cohort(), files, {}, store)
    with pytest.raises(UserError, match="predictions:b is not what evaluation"):
        report(ReportConfig(), done, None, {"a": files["a"]}, {}, store)
    with pytest.raises(UserError, match="predictions:c is not what evaluation"):
        report(ReportConfig(), done, None, files | {"c": files["a"]}, {}, store)
    Path(files["b"]).write_text(Path(files["b"]).read_text().replace("Cardiomegaly", "Normal heart"))
    with pytest.raises(UserError, match="predictions:b is not what evaluation"):
        report(ReportConfig(), done, None, files, {}, store)
    with pytest.raises(UserError, match="no file at"):
        report(ReportConfig(), done, None, files | {"b": str(tmp_path / "gone.csv")}, {}, store)


def test_a_file_beside_a_cohort_is_shown_with_the_images_of_its_studies(world: World, tmp_path: Path) -> None:
    cohort, store = world.fill(6).cohort(), str(world.store)
    said = world.answers(1.0)
    path = tmp_path / "theirs.csv"
    path.write_text("study_id,candidate\n" + "".join(f'{key},"{WRONG}"\n' for key in said))
    given: dict[str, Artifact | str] = {"ours": world.predictions("ours", cohort, said), "theirs": str(path)}
    done = evaluate(CONFIG, cohort, given, {}, store)
    html = report(ReportConfig(), done, cohort, given, {}, store).path("report.html").read_text()
    assert "Left rib fracture" in html
    assert 'alt="Current frontal chest radiograph"' in html


@pytest.fixture
def whole(world: World, tmp_path: Path) -> tuple[Artifact, dict[str, Any]]:
    """An evaluation with a checkpoint and a public board, and what a report of it takes."""
    folder = tmp_path / "boards_2025-09"
    folder.mkdir()
    (folder / "result_iuxray.csv").write_text("Model Name,Institution,Date,BLEU\nTheirs,There,2025,0.2\n")
    cohort, sft = world.fill(4).cohort(), world.checkpoint("sft")
    given: dict[str, Any] = {
        "cohort": cohort,
        "predictions": {"sft": world.predictions("sft", cohort, world.answers(1.0), model=sft)},
        "checkpoints": {"sft": sft},
        "store": str(world.store),
    }
    settings = CONFIG.model_copy(update={"board": str(folder)})
    return evaluate(settings, **given), given


def test_the_manifest_names_everything_that_was_compared(whole: tuple[Artifact, dict[str, Any]]) -> None:
    done, given = whole
    used = done.manifest.inputs
    assert set(used) == {"cohort", "predictions:sft", "checkpoint:sft", "board", "metrics"}
    # Of a checkpoint the log counts, which is no part of its digest.
    assert used["checkpoint:sft"].digest == given["checkpoints"]["sft"].manifest.action_key
    assert used["predictions:sft"].uri == given["predictions"]["sft"].uri


def test_a_report_takes_the_checkpoints_of_the_evaluations_systems_or_none(
    world: World, whole: tuple[Artifact, dict[str, Any]]
) -> None:
    done, given = whole
    made = report(ReportConfig(cases=0), done, **given)
    provenance = json.loads(made.path("report.json").read_text())["provenance"]
    assert "checkpoint:sft" in {entry["input"] for entry in provenance}
    report(ReportConfig(cases=0), done, **given | {"checkpoints": {}})
    with pytest.raises(UserError, match="checkpoint:sft is not what evaluation"):
        report(ReportConfig(cases=0), done, **given | {"checkpoints": {"sft": world.checkpoint("other")}})
    more = given["checkpoints"] | {"base": world.checkpoint("base")}
    with pytest.raises(UserError, match="checkpoint:base is of no system of evaluation"):
        report(ReportConfig(cases=0), done, **given | {"checkpoints": more})
    without = evaluate(CONFIG, **given | {"checkpoints": {}})
    report(ReportConfig(cases=0), without, **given)  # its curves, of an evaluation that was not told of it


def test_another_log_of_the_same_weights_is_another_evaluation(world: World) -> None:
    cohort, store = world.fill(4).cohort(), str(world.store)
    first, second = world.checkpoint("sft"), world.checkpoint("sft", entropy_floor=0.02)
    assert first.digest == second.digest
    given = {"sft": world.predictions("sft", cohort, world.answers(1.0), model=first)}
    done = [evaluate(CONFIG, cohort, given, {"sft": made}, store) for made in (first, second)]
    assert done[0].uri != done[1].uri
