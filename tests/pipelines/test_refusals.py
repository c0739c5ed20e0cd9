"""What an institution's user gets wrong is refused in one line, without a canary in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipelines import site
from tests.pipelines.site import below, leaking
from unirg.cohort.corpora.institution import SITE_KEY_VARIABLE
from unirg.cohort.intake import NO_SECTIONS
from unirg.study import keyed_id


def stage(folder: Path, *overrides: str, recipe: str = "toy_real/stage") -> subprocess.CompletedProcess[str]:
    """`unirg stage` with the site's key, its store in `folder`."""
    command = [
        sys.executable,
        "-m",
        "unirg.cli",
        "stage",
        "--store",
        str(folder / "store"),
        "--recipe",
        recipe,
    ]
    return subprocess.run(
        [*command, "--", *overrides],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, SITE_KEY_VARIABLE: site.SITE_KEY},
    )


def test_a_corpus_of_faulty_rows_alone_is_refused_without_a_canary(tmp_path: Path) -> None:
    table = site.write_table(tmp_path / "studies.csv", site.faulty(tmp_path))
    ended = stage(tmp_path, "corpus=institution", f"data={table}")
    said = ended.stdout + ended.stderr
    assert ended.returncode == 2
    assert "no study is left to stage" in said
    assert f"1 {NO_SECTIONS}" in said
    assert not site.leaks(said.encode())
    assert "Traceback" not in said
    assert leaking(below(tmp_path / "store"), tmp_path) == {}


def test_a_row_is_dropped_under_its_keyed_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unirg.cohort.corpora.institution import Institution

    table = site.write_table(tmp_path / "studies.csv", site.faulty(tmp_path))
    monkeypatch.setenv(SITE_KEY_VARIABLE, site.SITE_KEY)
    records = list(Institution.from_environment(str(table)).records())
    accessions = [site.PATIENTS[n].accession(5 + n) for n in range(4)]
    assert [record.study_id for record in records] == [
        keyed_id(bytes.fromhex(site.SITE_KEY), "study", accession) for accession in accessions
    ]
    assert not site.leaks(repr(records[2:]).encode())  # the dropped ones


def test_a_missing_directory_is_refused_with_what_to_do(tmp_path: Path) -> None:
    ended = stage(tmp_path, "corpus=iu_xray", f"data={tmp_path}/nowhere")
    assert ended.returncode == 2
    assert "nowhere" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "store" / "cohort").exists()


def test_an_institutions_missing_table_is_refused_without_its_path(tmp_path: Path) -> None:
    ended = stage(tmp_path, "corpus=institution", f"data={tmp_path}/{site.PATIENTS[0].mrn}/studies.csv")
    assert ended.returncode == 2
    assert "its table does not exist" in ended.stderr
    assert not site.leaks((ended.stdout + ended.stderr).encode())


def test_a_wrong_key_in_a_recipe_is_refused_with_the_nearest_valid_one(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("corpus: phantom\nstudeis: 5\n")
    ended = stage(tmp_path, recipe=str(recipe))
    assert ended.returncode == 2
    assert "unknown key studeis: did you mean studies?" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_a_missing_site_key_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    table = site.write(tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != SITE_KEY_VARIABLE}
    command = [sys.executable, "-m", "unirg.cli", "stage", "--store", str(tmp_path / "store"), "--"]
    ended = subprocess.run(
        [*command, "corpus=institution", f"data={table}"],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert ended.returncode == 2
    assert "openssl rand -hex 32" in ended.stderr
    assert not site.leaks(ended.stderr.encode())
