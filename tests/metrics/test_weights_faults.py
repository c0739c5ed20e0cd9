"""Fetching weights when things are hostile, damaged, refused, full or killed: said, and nothing left."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests import hub_server
from tests.conftest import S3
from tests.hub_server import Hub
from tests.originals import (
    BERT,
    CHECKPOINTS,
    ENCODER,
    archive,
    fetch,
    files,
    radgraph_members,
)
from unirg.errors import UserError
from unirg.metrics import weights, weights_convert


class Code:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return os.mkdir, ("/tmp/unirg-pickle-ran",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pickle.dumps({"model_state_dict": Code()}, 2), "pickles more than tensors"),
        ("code", "pickles more than tensors"),
        (b"", "cannot be read"),
        (b"not a checkpoint", "pickles more than tensors|cannot be read"),
        ("half", "cannot be read"),
        ("list", "holds no tensors by name"),
        ("text", "which is no tensor"),
    ],
)
def test_a_pickle_with_anything_but_tensors_is_refused_and_not_run(
    content: bytes | str, said: str, originals: Path, tmp_path: Path
) -> None:
    path = originals / CHECKPOINTS / "chexbert.pth"
    if content == "code":
        torch.save({"model_state_dict": {"a": Code()}}, path)
    elif content == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif content == "list":
        torch.save([torch.ones(2)], path)
    elif content == "text":
        torch.save({"model_state_dict": {"a": "b"}}, path)
    else:
        assert isinstance(content, bytes)
        path.write_bytes(content)
    with pytest.raises(UserError, match=said) as raised:
        fetch("chexbert", tmp_path / "to", originals)
    assert "chexbert.pth" in str(raised.value)
    assert not Path("/tmp/unirg-pickle-ran").exists()
    assert files(tmp_path / "to") == {".chexbert.lock"}


@pytest.mark.parametrize(
    ("members", "said"),
    [
        (radgraph_members() | {"../outside": b"x"}, "is refused"),
        (radgraph_members() | {"vocabulary/../../outside.txt": b"x"}, "is refused"),
        ({"config.json": b"{}"}, "lacks config.json, weights.th"),
        (radgraph_members() | {"config.json": b"{}"}, "names no encoder"),
        (radgraph_members() | {"config.json": b"{"}, "names no encoder"),
        (radgraph_members(["a"]), "names no encoder"),
        (radgraph_members("../../etc"), "names no encoder"),
        (radgraph_members("/etc/model"), "names no encoder"),
        (radgraph_members("no/such-encoder"), "has no config.json of no/such-encoder"),
        (radgraph_members() | {"weights.th": b"x"}, "weights.th"),
    ],
)
def test_a_hostile_or_incomplete_archive_is_refused_and_writes_nothing(
    members: dict[str, bytes], said: str, originals: Path, tmp_path: Path
) -> None:
    archive(originals / CHECKPOINTS / "radgraph.tar.gz", members)
    with pytest.raises(UserError, match=said):
        fetch("radgraph", tmp_path / "to", originals)
    assert files(tmp_path / "to") == {".radgraph.lock"}
    assert not list(tmp_path.rglob("outside*"))


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.98, 0.999])
def test_a_truncated_archive_is_refused(kept: float, originals: Path, tmp_path: Path) -> None:
    path = originals / CHECKPOINTS / "radgraph.tar.gz"
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(UserError, match=r"radgraph\.tar\.gz cannot be unpacked"):
        fetch("radgraph", tmp_path / "to", originals)


def test_links_and_devices_of_an_archive_are_left_out_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "links.tar"
    for kind, target, refused in (
        (tarfile.SYMTYPE, "/etc/passwd", True),
        (tarfile.SYMTYPE, "weights.th", False),
        (tarfile.FIFOTYPE, "", True),
    ):
        with tarfile.open(path, "w") as tar:
            member = tarfile.TarInfo("config.json")
            member.type, member.linkname = kind, target
            tar.addfile(member)
        if refused:
            with pytest.raises(UserError, match="is refused"):
                weights_convert.unpack(path, tmp_path / "out", lambda name: True)
        else:
            weights_convert.unpack(path, tmp_path / "out", lambda name: True)
        assert not (tmp_path / "out/config.json").is_symlink()


def test_an_archive_that_would_fill_the_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_convert, "MAX_BYTES", 1 << 20)
    archive(tmp_path / "bomb.tar.gz", {"config.json": bytes(2 << 20)})
    with pytest.raises(UserError, match="holds more than"):
        weights_convert.unpack(tmp_path / "bomb.tar.gz", tmp_path / "out", lambda name: True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("/nowhere/at/all", "no files at /nowhere/at/all"),
        ("s3://no-such-bucket-of-ours/x", "no-such-bucket-of-ours"),
        ("gopher://x/y", "cannot open gopher://x/y"),
    ],
)
def test_a_mirror_that_is_not_there_is_named(source: str, said: str, tmp_path: Path, moto_s3: S3) -> None:
    with pytest.raises(UserError, match=said):
        fetch("chexbert", tmp_path / "to", source)


def test_a_mirror_without_a_tokenizer_is_told_which_file_it_lacks(originals: Path, tmp_path: Path) -> None:
    for scorer, repository, name in (
        ("chexbert", BERT, "tokenizer.json"),
        ("ratescore", "FremyCompany/BioLORD-2023-C", "vocab.txt"),
        ("radgraph", ENCODER, "vocab.txt"),
    ):
        (originals / repository / name).unlink()
        with pytest.raises(UserError, match=f"no tokenizer.json of {repository}: put it into a folder"):
            fetch(scorer, tmp_path / "to", originals)


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (
            403,
            "GatedRepo",
            r"is granted on https://huggingface.co/StanfordAIMI/RRG_scorers.*HF_TOKEN.*--from DIR",
        ),
        (401, "RepoNotFound", r"shows no StanfordAIMI/RRG_scorers to this user: set HF_TOKEN.*--from DIR"),
        (404, "RevisionNotFound", r"HTTP 404.*--from DIR"),
        (403, "", r"HTTP 403.*--from DIR"),
    ],
)
def test_what_the_hub_refuses_is_said_with_the_remedy(
    status: int, code: str, said: str, hub: Hub, tmp_path: Path
) -> None:
    hub.refuse[CHECKPOINTS] = (status, code)
    with pytest.raises(UserError, match=said):
        fetch("chexbert", tmp_path / "to")


def test_a_hub_out_of_reach_is_said_with_the_offline_way(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    hub.shutdown()
    hub.server_close()
    with pytest.raises(UserError, match=r"cannot get StanfordAIMI/RRG_scorers from the hub.*--from DIR"):
        fetch("chexbert", tmp_path / "to")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"cannot get StanfordAIMI/RRG_scorers from the hub.*--from DIR"):
        fetch("chexbert", tmp_path / "to")


def test_a_download_damaged_in_the_hubs_cache_is_found_by_the_hubs_own_digest(
    hub: Hub, tmp_path: Path
) -> None:
    fetch("chexbert", tmp_path / "to")
    kept = next((tmp_path / "hf").rglob("chexbert.pth")).resolve()
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 1
    kept.write_bytes(data)
    with pytest.raises(UserError, match="is damaged"):
        fetch("chexbert", tmp_path / "other")


def test_a_destination_that_cannot_be_written_is_named(originals: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=str(tmp_path / "file")):
        fetch("chexbert", tmp_path / "file/to", originals)
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(UserError, match="permission denied"):
            fetch("chexbert", tmp_path / "locked", originals)


COMMAND = """
import resource, sys
if sys.argv[1] != "0":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
from unirg import cli
cli.main(sys.argv[2:])
"""


def command(*arguments: str, limit: int = 0, endpoint: str = "", cwd: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(cwd / "hf"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(limit), *arguments],
        env=environment,
        cwd=Path(__file__).parent.parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_full_disk_leaves_nothing_and_is_said(originals: Path, tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1 << 18)}, originals / "distilbert/distilroberta-base/model.safetensors")
    (tmp_path / "to").mkdir()
    full = command(
        *(
            "weights",
            "fetch",
            "bertscore",
            "--accept",
            "--from",
            str(originals),
            "--to",
            str(tmp_path / "to"),
        ),
        limit=1 << 16,
        cwd=tmp_path,
    )
    _, said = full.communicate()
    assert full.returncode == 2, said
    assert "file too large: free space" in said
    assert "Traceback" not in said
    assert files(tmp_path / "to") == {".bertscore.lock"}


def test_a_kill_in_the_middle_leaves_nothing_that_looks_whole_and_two_at_once_make_it_so(
    originals: Path, tmp_path: Path
) -> None:
    to = tmp_path / "to"
    line = ("weights", "fetch", "ratescore", "--to", str(to))
    with hub_server.serving(originals) as hub:
        hub.hold = "vocab.txt"  # of the second repository
        killed = command(*line, endpoint=hub.url, cwd=tmp_path)
        assert hub.held.wait(60)
        assert (to / ".ratescore.work/ner/model.safetensors").is_file()
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        assert not (to / "ratescore").exists()
        hub.hold = ""
        hub.release.set()
        both = [command(*line, endpoint=hub.url, cwd=tmp_path) for _ in range(2)]
        said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert set(os.listdir(to)) == {"ratescore", ".ratescore.lock"}
    assert weights.read_record(to / "ratescore")["identity"] == weights.identity(to / "ratescore")
