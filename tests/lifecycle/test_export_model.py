"""A checkpoint handed on: a folder that transformers loads, whole or not there, wherever it is put."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import transformers

from tests.conftest import S3
from tests.lifecycle.card_world import CardWorld, renamed, retold
from tests.lifecycle.gate_world import GateWorld
from tests.toy import picture
from unirg import checkpoint, cli, storage
from unirg.artifact import ArtifactError
from unirg.errors import UserError
from unirg.lifecycle import export
from unirg.lifecycle.cards import data_card, model_card
from unirg.lifecycle.export import ABOUT, DATA_CARD, README, Measured, export_model, measured


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> CardWorld:
    return CardWorld.build(tmp_path_factory.mktemp("export") / "store")


def exported(built: CardWorld, target: Path | str, **more: Any) -> list[str]:
    return export_model(built.grpo, str(target), built.store, Measured(built.evaluation), **more)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_holds_the_model_and_its_cards(built: CardWorld, tmp_path: Path) -> None:
    names = exported(built, tmp_path / "model")
    found = files(tmp_path / "model")
    assert sorted(found) == names
    assert found[README].decode() == model_card(built.grpo, built.store, built.evaluation)
    assert found[DATA_CARD].decode() == data_card(built.cohort)
    for name in built.grpo.manifest.files:
        assert found[name.removeprefix("model/")] == built.grpo.path(name).read_bytes()
    about = json.loads(found[ABOUT])
    assert about["checkpoint"] == built.grpo.digest
    assert about["files"] == {name: storage.sha256(data) for name, data in found.items() if name != ABOUT}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_cards_own_program_loads_the_folder_and_writes_a_report(
    built: CardWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(built, tmp_path / "model")
    monkeypatch.chdir(tmp_path / "model")
    (tmp_path / "model" / "frontal.png").write_bytes(picture(1, 64))
    # The stock processor needs torchvision, which has no build here; the card says so, and names ours.
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", checkpoint.load_processor)
    (program,) = re.findall(r"```python\n(.*?)```", Path(README).read_text(), re.DOTALL)
    said = io.StringIO()
    with redirect_stdout(said):
        exec(program.replace("max_new_tokens=512", "max_new_tokens=8"), {})
    assert said.getvalue().strip()


def test_earlier_cohorts_have_data_cards_of_their_own(built: CardWorld, tmp_path: Path) -> None:
    later = renamed(built.cohort, built.store, institution="south")
    made = built.tuned(built.sft, later)
    names = export_model(made, str(tmp_path / "model"), built.store, Measured())
    earlier = f"DATA_CARD_{built.cohort.digest[:12]}.md"
    assert {DATA_CARD, earlier} <= set(names)
    assert (tmp_path / "model" / DATA_CARD).read_text() == data_card(later)
    assert (tmp_path / "model" / earlier).read_text() == data_card(built.cohort)


def test_again_it_is_found_and_changes_nothing(built: CardWorld, tmp_path: Path) -> None:
    exported(built, tmp_path / "model")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "model").iterdir()}
    exported(built, tmp_path / "model")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "model").iterdir()}


def test_an_empty_folder_is_filled_and_anything_else_is_refused(built: CardWorld, tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    exported(built, target)
    with pytest.raises(UserError, match=r"model holds something else: name an output that is not there yet"):
        exported(built, target, licence="mit")  # another export
    (target / "model.safetensors").write_bytes(b"altered")
    with pytest.raises(UserError, match="holds something else"):
        exported(built, target)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        exported(built, tmp_path / "file")
    with pytest.raises(UserError, match=r"none is no folder: make it, or correct --output"):
        exported(built, tmp_path / "none" / "model")
    with pytest.raises(UserError, match=r"name a folder or an s3:// prefix"):
        exported(built, "gs://bucket/model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "model"]


def test_what_is_no_checkpoint_or_damaged_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    own = CardWorld.build(tmp_path / "store", evaluated=False)
    with pytest.raises(ArtifactError, match="has no model directory: name a checkpoint"):
        export_model(own.cohort, str(tmp_path / "out"), own.store, Measured())
    own.grpo.path("model/config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"config\.json is truncated or altered"):
        export_model(own.grpo, str(tmp_path / "out"), own.store, Measured())
    assert not (tmp_path / "out").exists()


KILLED = """
import os, shutil, sys
from unirg.artifact import open_artifact
from unirg.lifecycle.export import Measured, export_model

copy, copied = shutil.copyfile, []

def last(source, target):
    copied.append(copy(source, target))
    if len(copied) == int(sys.argv[4]):
        print("copied", flush=True)
        sys.stdin.read()

shutil.copyfile = last
export_model(open_artifact(sys.argv[1]), sys.argv[2], sys.argv[3], Measured())
"""


@pytest.mark.parametrize("copies", [1, 5, 10])
def test_killed_in_the_middle_there_is_no_folder_and_again_there_is(
    built: CardWorld, tmp_path: Path, copies: int
) -> None:
    target = tmp_path / "model"
    command = [sys.executable, "-c", KILLED, built.grpo.uri, str(target), built.store, str(copies)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"copied\n"
        process.send_signal(signal.SIGKILL)
    assert not target.exists()
    exported(built, target)
    assert checkpoint.load_model(target)


def test_a_full_disk_is_told_and_leaves_nothing(
    built: CardWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(export.shutil, "copyfile", full)
        with pytest.raises(UserError, match="no space left on device"):
            exported(built, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def in_bucket(s3: S3, uri: str) -> dict[str, bytes]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    listed = s3.client().list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", ())
    keys = [each["Key"] for each in listed]
    return {key.removeprefix(f"{prefix}/"): storage.read_bytes(f"s3://{bucket}/{key}") for key in keys}


def test_a_bucket_holds_the_same_files(built: CardWorld, tmp_path: Path, moto_s3: S3) -> None:
    uri = f"s3://{moto_s3.bucket()}/models/new"
    exported(built, uri)
    exported(built, tmp_path / "model")
    assert in_bucket(moto_s3, uri) == files(tmp_path / "model")
    exported(built, uri)
    with pytest.raises(UserError, match="holds something else"):
        exported(built, uri, licence="mit")


def test_in_a_bucket_nothing_loads_it_before_it_is_whole_and_a_rerun_completes(
    built: CardWorld, tmp_path: Path, moto_s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"s3://{moto_s3.bucket()}/model"
    upload = storage.upload
    sent: list[str] = []

    def breaking(source: Path, to: str) -> None:
        sent.append(to.rpartition("/")[2])
        if sent[-1] == README:
            raise storage.StorageError("the connection broke off")
        upload(source, to)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "upload", breaking)
        with pytest.raises(storage.StorageError, match="broke off"):
            exported(built, uri)
    assert sent[-2:] == ["config.json", README]
    assert sent.count("config.json") == 1
    assert README not in in_bucket(moto_s3, uri)
    with pytest.raises(UserError, match="holds something else"):
        exported(built, uri, licence="mit")
    exported(built, uri)
    exported(built, tmp_path / "model")
    assert in_bucket(moto_s3, uri) == files(tmp_path / "model")


def test_a_prefix_that_somebody_uses_is_refused(built: CardWorld, moto_s3: S3) -> None:
    uri = f"s3://{moto_s3.bucket()}/model"
    storage.put_new(f"{uri}/notes.txt", b"mine")
    with pytest.raises(UserError, match="holds something else"):
        exported(built, uri)
    assert in_bucket(moto_s3, uri) == {"notes.txt": b"mine"}


def test_the_newest_evaluation_and_verdict_that_name_it_are_found(tmp_path: Path) -> None:
    own = CardWorld.build(tmp_path / "store")
    assert measured(own.grpo, own.store) == Measured(own.evaluation, None)
    assert measured(own.sft, own.store) == Measured(None, None)
    later = retold(own.evaluation, {"judge": "gpt-4"}, store=own.store)
    then = time.time() - 60
    os.utime(Path(own.evaluation.uri, "manifest.json"), (then, then))
    assert measured(own.grpo, own.store).evaluation == later
    world = GateWorld(tmp_path / "gate")
    scores = {name: world.columns(0.5 + world.noise(seed)) for seed, name in enumerate(("new", "old"))}
    labels = {name: world.states("Edema", 0.5) for name in ("", "new", "old")}
    verdict = world.judge(world.evaluation(scores, labels=labels))
    found = measured(world.side("new").checkpoint, str(world.store))
    assert found.verdict == verdict
    assert measured(world.side("old").checkpoint, str(world.store)).verdict is None


def test_the_command_exports_with_what_the_store_knows(
    built: CardWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(["export-model", *arguments])
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out, printed.err

    target = str(tmp_path / "model")
    named = ("--checkpoint", built.grpo.uri, "--output", target)
    code, out, err = run(*named, "--licence", "apache-2.0", "--verdict", "none")
    assert (code, out) == (0, f"{target}\n")
    assert f"evaluation: {built.evaluation.uri}\nverdict: none\n" in err
    assert "README.md" in err
    assert "license: apache-2.0" in Path(target, README).read_text()
    code, out, err = run(*named, "--evaluation", "none")
    assert (code, out) == (2, "")
    assert "holds something else" in err
    code, _, err = run("--checkpoint", built.evaluation.uri, "--output", target)
    assert code == 2
    assert "was made by stage evaluate; this needs base or sft or grpo" in err
