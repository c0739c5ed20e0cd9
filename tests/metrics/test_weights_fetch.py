"""Fetching weights: from the hub or a mirror, checked, converted, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import S3
from tests.hub_server import Hub
from tests.metrics import tiny, tiny_radgraph
from tests.originals import (
    BERT,
    CHECKPOINTS,
    fetch,
    files,
)
from unirg import cli, storage
from unirg.errors import UserError
from unirg.metrics import weights, weights_fetch
from unirg.metrics.chexbert import CheXbert
from unirg.metrics.encoder import Compute
from unirg.metrics.radgraph import RadGraph
from unirg.metrics.weights_sources import SOURCES


@pytest.mark.parametrize("place", ["mirror", "hub"])
def test_every_scorers_directory_is_made_of_its_originals_wherever_they_are(
    place: str, tmp_path: Path, hub: Hub
) -> None:
    source = tmp_path / "mirror" if place == "mirror" else None
    made = {name: fetch(name, tmp_path / "to", source) for name in SOURCES}
    radgraph = {
        "config.json",
        "model.safetensors",
        "vocabulary/ner_labels.txt",
        "encoder/config.json",
        "encoder/vocab.txt",
        "source.json",
    }
    assert files(made["chexbert"]) == {"config.json", "tokenizer.json", "model.safetensors", "source.json"}
    assert files(made["radgraph"]) == files(made["radgraph-xl"]) == radgraph
    assert files(made["bertscore"]) == {
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "bertscore.json",
        "source.json",
    }
    assert files(made["ratescore"]) == {
        "ner/config.json",
        "ner/tokenizer.json",
        "ner/model.safetensors",
        "synonyms/config.json",
        "synonyms/vocab.txt",
        "synonyms/model.safetensors",
        "source.json",
    }
    assert json.loads((made["radgraph"] / "encoder/config.json").read_text())["of"] == "some-BERT"
    assert json.loads((made["bertscore"] / "bertscore.json").read_text()) == weights_fetch.BERTSCORE


def test_a_training_checkpoint_becomes_its_models_tensors_with_their_names_and_types(
    originals: Path, tmp_path: Path
) -> None:
    tensors = weights.load_tensors(fetch("chexbert", tmp_path / "to", originals) / "model.safetensors")
    assert set(tensors) == {"bert.weight", "linear_heads.0.bias", "linear_heads.1.bias"}
    assert tensors["bert.weight"].dtype == torch.float16
    assert tensors["linear_heads.1.bias"].tolist() == [0, 1, 2, 3]


def test_what_is_fetched_is_what_the_metrics_load(tmp_path: Path) -> None:
    mirror, checkpoints = tmp_path / "mirror", tmp_path / "mirror/RRG_scorers"
    checkpoints.mkdir(parents=True)
    (mirror / "bert-base-uncased").mkdir()
    made = tiny.chexbert(mirror / "bert-base-uncased")
    tensors = load_file(made / "model.safetensors")
    torch.save(
        {"model_state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}},
        checkpoints / "chexbert.pth",
    )
    texts = ["The lungs are clear.", "Small effusion."]
    expected = CheXbert(made, Compute()).read(texts)
    found = CheXbert(fetch("chexbert", tmp_path / "to", mirror), Compute()).read(texts)
    assert all((one.embedding == other.embedding).all() for one, other in zip(expected, found, strict=True))

    made = tiny_radgraph.write(tmp_path / "radgraph")
    torch.save(load_file(made / "model.safetensors"), made / "weights.th")
    (made / "model.safetensors").unlink()
    (made / "encoder").rename(mirror / "tiny")
    with tarfile.open(checkpoints / "radgraph.tar.gz", "w:gz") as tar:
        tar.add(made, ".")
    RadGraph(fetch("radgraph", tmp_path / "to", mirror), Compute()).read(texts)


def test_the_record_says_where_the_files_are_from_and_is_no_part_of_the_identity(
    originals: Path, tmp_path: Path
) -> None:
    made = fetch("chexbert", tmp_path / "to", originals)
    record = weights.read_record(made)
    assert record["source"] == str(originals)
    assert record["files"][f"{CHECKPOINTS}/chexbert.pth"] == storage.sha256_file(
        originals / CHECKPOINTS / "chexbert.pth"
    )
    assert record["licences"][BERT] == "Apache-2.0"
    before = weights.identity(made)
    assert record["identity"] == before
    (made / "source.json").write_text("{}")
    assert weights.identity(made) == before
    (made / "tokenizer.json").write_text("other")
    assert weights.identity(made) != before


def test_the_hub_and_a_mirror_of_it_give_the_same_identity(tmp_path: Path, hub: Hub) -> None:
    ours = fetch("chexbert", tmp_path / "a", tmp_path / "mirror")
    assert weights.identity(ours) == weights.identity(fetch("chexbert", tmp_path / "b"))


@pytest.mark.parametrize("form", ["names", "tar", "tar.gz", "s3", "s3 tar"])
def test_a_mirror_may_be_short_named_folders_an_archive_or_object_storage(
    form: str, originals: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    short = tmp_path / "short"
    shutil.copytree(originals / BERT, short / "bert-base-uncased")
    shutil.copyfile(originals / CHECKPOINTS / "chexbert.pth", short / "chexbert.pth")
    source = str(short)
    if "tar" in form:
        source = str(tmp_path / "all.tar.gz")
        with tarfile.open(source, "w" if form == "tar" else "w:gz") as tar:
            tar.add(short, ".")
    if form.startswith("s3"):
        s3: S3 = request.getfixturevalue("moto_s3")
        bucket = s3.bucket()
        if form == "s3 tar":
            storage.upload(Path(source), f"s3://{bucket}/all.tar.gz")
            source = f"s3://{bucket}/all.tar.gz"
        else:
            for name in files(short):
                storage.upload(short / name, f"s3://{bucket}/some/where/{name}")
            source = f"s3://{bucket}/some/where/"
    made = fetch("chexbert", tmp_path / "to", source)
    assert weights.identity(made) == weights.identity(fetch("chexbert", tmp_path / "again", originals))
    assert set(os.listdir(tmp_path / "to")) == {"chexbert", ".chexbert.lock"}


def test_a_file_that_is_not_the_stated_one_is_refused_with_both_digests(
    originals: Path, tmp_path: Path
) -> None:
    given = storage.sha256_file(originals / CHECKPOINTS / "chexbert.pth")
    with pytest.raises(UserError, match=rf"chexbert\.pth .*{given}.* states 6550703c.*--accept"):
        fetch("chexbert", tmp_path / "to", originals, accept=False)
    assert files(tmp_path / "to") == {".chexbert.lock"}


def test_a_second_fetch_takes_the_same_files_and_refuses_others_unless_told(
    originals: Path, tmp_path: Path
) -> None:
    to = tmp_path / "to"
    made = fetch("ratescore", to, originals, accept=False)  # no digest of these is stated
    first = weights.identity(made)
    kept = (made / "ner/model.safetensors").stat().st_ino
    assert weights.identity(fetch("ratescore", to, originals, accept=False)) == first
    assert (made / "ner/model.safetensors").stat().st_ino == kept
    changed = originals / "Angelakeke/RaTE-NER-Deberta/model.safetensors"
    recorded = storage.sha256_file(changed)
    save_file({"w": torch.zeros(3)}, changed)
    with pytest.raises(UserError, match=rf"SHA-256 is {storage.sha256_file(changed)}.*recorded {recorded}"):
        fetch("ratescore", to, originals, accept=False)
    assert weights.identity(made) == first
    assert weights.identity(fetch("ratescore", to, originals, accept=True)) != first
    fetch("ratescore", to, originals, accept=False)  # what was accepted is now the known one


def test_a_damaged_directory_is_made_anew_by_the_same_command(originals: Path, tmp_path: Path) -> None:
    made = fetch("chexbert", tmp_path / "to", originals)
    whole = weights.identity(made)
    (made / "model.safetensors").write_bytes(b"half")
    (made / "tokenizer.json").unlink()
    assert weights.identity(fetch("chexbert", tmp_path / "to", originals, accept=False)) == whole


def test_what_was_not_fetched_is_never_replaced(originals: Path, tmp_path: Path) -> None:
    (tmp_path / "to/chexbert").mkdir(parents=True)
    (tmp_path / "to/chexbert/model.safetensors").write_text("trained here")
    with pytest.raises(UserError, match="is in the way: it was not fetched"):
        fetch("chexbert", tmp_path / "to", originals)
    assert files(tmp_path / "to/chexbert") == {"model.safetensors"}


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        cli.main(["weights", *arguments])
    printed = capsys.readouterr()
    return int(left.value.code or 0), printed.out, printed.err


def test_the_command_fetches_and_lists(
    originals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = str(tmp_path / "to")
    code, out, said = call(capsys, "fetch", "chexbert", "--from", str(originals), "--to", to, "--accept")
    assert (code, out) == (0, f"{tmp_path}/to/chexbert\n")
    assert "chexbert: https://huggingface.co/StanfordAIMI/RRG_scorers" in said
    identity = weights.identity(tmp_path / "to/chexbert")[:16]
    assert f"ready, identity {identity}" in said
    code, out, _ = call(capsys, "list", "--weights", to)
    lines = out.splitlines()
    assert (code, lines[0]) == (0, to)
    assert lines[1].startswith(
        f"chexbert: {identity}, from {originals} (StanfordAIMI/RRG_scorers: MIT on the hub"
    )
    assert "radgraph: missing; get it with: unirg weights fetch radgraph" in lines[2]
    assert len(lines) == 1 + len(SOURCES)
    (tmp_path / "to/chexbert/tokenizer.json").write_text("other")
    assert "chexbert: altered since it was fetched" in call(capsys, "list", "--weights", to)[1]
    code, out, _ = call(capsys, "fetch", "--from", str(originals), "--to", to, "--accept")
    assert (code, len(out.splitlines())) == (0, len(SOURCES))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fetch", "chexbrt"), "no weights are named chexbrt: did you mean chexbert?"),
        (("fetch", "zzz"), "there are chexbert, radgraph,"),
        (
            ("fetch", "chexbert", "--from", "/nowhere/at/all", "--to", "/tmp/unirg-none"),
            "no files at /nowhere",
        ),
        (("fetch", "chexbert", "--to", "s3://b/w"), "s3://b/w is not a local path"),
    ],
)
def test_a_mistake_ends_with_2_and_one_line(
    arguments: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UNIRG_WEIGHTS", str(tmp_path))
    code, _, shown = call(capsys, *arguments)
    assert code == 2
    assert said in shown
    assert "Traceback" not in shown
