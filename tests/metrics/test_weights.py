"""Weights as scorers read them: the missing is named, the misfitting refused, the remote downloaded once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import S3
from tests.originals import (
    BERT,
    fetch,
    files,
)
from unirg import artifact, storage
from unirg.config import Config
from unirg.errors import UserError
from unirg.metrics import weights
from unirg.metrics.weights_sources import SOURCES


def test_a_missing_or_empty_file_is_named_with_source_licence_and_command(tmp_path: Path) -> None:
    directory = tmp_path / "ratescore"
    with pytest.raises(UserError) as raised:
        weights.require(directory, "ratescore", ["ner/config.json"])
    said = str(raised.value)
    for part in (
        str(directory / "ner/config.json"),
        "is missing",
        "https://huggingface.co/Angelakeke/RaTE-NER-Deberta",
        "licence: MIT",
        f"unirg weights fetch ratescore --to {tmp_path}",
    ):
        assert part in said
    (directory / "synonyms").mkdir(parents=True)
    (directory / "synonyms/config.json").touch()
    with pytest.raises(UserError, match=r"is empty: .*BioLORD-2023-C.*UMLS"):
        weights.require(directory, "ratescore", ["synonyms/config.json"])
    (directory / "synonyms/config.json").write_text("{}")
    weights.require(directory, "ratescore", ["synonyms/config.json"])


@pytest.mark.parametrize("damage", ["missing", "half", "text"])
def test_a_damaged_weights_file_is_named_with_the_command_that_gets_it(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "chexbert/model.safetensors"
    path.parent.mkdir()
    if damage == "half":
        save_file({"w": torch.ones(64)}, path)
        path.write_bytes(path.read_bytes()[:-8])
    elif damage == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match=r"chexbert/model\.safetensors.*unirg weights fetch chexbert"):
        weights.load_tensors(path)


def test_tensors_fit_each_and_every_one_or_are_refused() -> None:
    whole = torch.nn.Linear(3, 2).state_dict()
    module = torch.nn.Linear(3, 2)
    weights.fit(module, whole | {"pooler.bias": torch.ones(1)}, "x", ignore=["pooler."])
    assert torch.equal(module.weight, whole["weight"])
    assert module.weight.data_ptr() != whole["weight"].data_ptr()
    for wrong, said in (
        ({"weight": whole["weight"]}, r"in x .*1 tensors.*bias is missing"),
        (whole | {"extra": torch.ones(1)}, "extra is left over"),
        (whole | {"weight": torch.ones(2, 4)}, r"weight is \(2, 4\), not \(2, 3\)"),
        (whole | {"bias": torch.tensor([1.0, float("nan")])}, "bias is not finite"),
    ):
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        with pytest.raises(UserError, match=said):
            weights.fit(module, wrong, "x")
        assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_weights_lie_where_they_are_named_else_where_the_environment_says_else_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIRG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("UNIRG_WEIGHTS", raising=False)
    assert weights.local() == weights.default_root() == tmp_path / "cache/weights"
    monkeypatch.setenv("UNIRG_WEIGHTS", str(tmp_path / "env"))
    assert weights.local() == weights.default_root() == tmp_path / "env"
    assert weights.local(str(tmp_path / "named")) == tmp_path / "named"
    monkeypatch.setenv("UNIRG_WEIGHTS", "s3://bucket/weights")
    assert weights.default_root() == tmp_path / "cache/weights"


def store(uri: str, directory: Path, stage: str = "weights") -> artifact.Artifact:
    with artifact.draft(uri, stage, 1, Config(), {}) as draft:
        if draft.committed:
            return draft.committed
        shutil.copytree(directory, draft.out, dirs_exist_ok=True)
        return draft.commit()


def test_weights_of_an_artifact_are_those_of_its_stage_here_and_in_object_storage(
    originals: Path, tmp_path: Path, moto_s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIRG_CACHE", str(tmp_path / "cache"))
    made = fetch("chexbert", tmp_path / "to", originals)
    for uri in (str(tmp_path / "store"), f"s3://{moto_s3.bucket()}/store"):
        found = weights.local(store(uri, tmp_path / "to").uri)
        assert weights.identity(found / "chexbert") == weights.identity(made)
        with pytest.raises(UserError, match="was made by stage sft"):
            weights.local(store(uri, tmp_path / "to", "sft").uri)


def test_weights_in_object_storage_are_downloaded_once_and_anew_when_they_change(
    originals: Path, tmp_path: Path, moto_s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIRG_CACHE", str(tmp_path / "cache"))
    made = fetch("chexbert", tmp_path / "to", originals)
    uri = f"s3://{moto_s3.bucket()}/weights"
    with pytest.raises(UserError, match=f"no weights at {uri}"):
        weights.local(uri)
    for name in files(made):
        storage.upload(made / name, f"{uri}/chexbert/{name}")
    found = weights.local(uri)
    assert weights.identity(found / "chexbert") == weights.identity(made)
    with monkeypatch.context() as patched:
        patched.setattr(storage, "download", None)
        assert weights.local(f"{uri}/") == found
    storage.upload(originals / BERT / "config.json", f"{uri}/chexbert/tokenizer.json")
    with pytest.raises(UserError, match=f"{uri}/chexbert is altered"):
        weights.local(uri)
    storage.upload(made / "tokenizer.json", f"{uri}/chexbert/tokenizer.json")
    storage.upload(made / "tokenizer.json", f"{uri}/bertscore/tokenizer.json")
    assert (weights.local(uri) / "bertscore/tokenizer.json").is_file()


def test_an_object_with_a_hostile_name_is_refused(
    tmp_path: Path, moto_s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIRG_CACHE", str(tmp_path / "cache"))
    bucket = moto_s3.bucket()
    moto_s3.client().put_object(Bucket=bucket, Key="w/chexbert/../../../outside", Body=b"x")
    with pytest.raises(UserError, match=r"an object named chexbert/\.\./"):
        weights.local(f"s3://{bucket}/w")
    assert not list(tmp_path.rglob("outside"))


def test_every_source_states_what_a_reader_must_know() -> None:
    for sources in SOURCES.values():
        for source in sources:
            assert source.licence
            assert source.files
            assert set(source.digests) <= set(source.files)
            assert all(len(digest) == 64 for digest in source.digests.values())
