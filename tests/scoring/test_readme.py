"""The README's lines for a folder of DICOM studies, copied and run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import toy
from tests.cohort.site_files import HEADER, dicom
from unirg.scoring.archive import NOTICE

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(300)
@pytest.mark.skipif(not (Path(sys.executable).parent / "unirg").exists(), reason="unirg is not installed")
def test_the_readmes_four_lines_score_a_folder_of_dicom_studies(tmp_path: Path) -> None:
    section = (ROOT / "README.md").read_text().partition("## Score a folder of DICOM studies")[2]
    found = re.search(r"```\n(.*?)```", section, re.DOTALL)
    assert found
    lines = found[1].strip().splitlines()
    assert len(lines) == 4
    dicom(tmp_path / "studies" / "one.dcm")
    dicom(tmp_path / "studies" / "two", StudyInstanceUID="1.2.9", SOPInstanceUID="1.2.9.1")
    made = toy.make_checkpoint(str(tmp_path / "made"))
    (tmp_path / "runs" / "demo-phantom" / "sft").mkdir(parents=True)
    Path(made.uri).rename(tmp_path / "runs" / "demo-phantom" / "sft" / "0123456789abcdef")
    # A random policy seldom ends a report, so what it says is kept however it ends.
    script = "\n".join(lines).replace("/path/to/studies", str(tmp_path / "studies"))
    script = script.replace("unirg score --archive", "unirg score truncated=keep max_tokens=16 --archive")
    environment = {name: value for name, value in os.environ.items() if name != "UNIRG_STORE"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    command = ["bash", "-e", "-c", script]
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "done: 2 scored, 0 failed of 2 studies" in ended.stdout
    reports = [json.loads(line) for line in (tmp_path / "reports.ndjson").read_text().splitlines()]
    assert [report["status"] for report in reports] == ["preliminary"] * 2
    assert {report["meta"]["tag"][0]["display"] for report in reports} == {NOTICE}
    told = ended.stdout + ended.stderr + json.dumps(reports)
    for name in ("PatientName", "PatientID", "AccessionNumber"):
        assert HEADER[name] not in told
