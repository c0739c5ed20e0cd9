"""ReXGradient's archive in parts: cut or whole tars, plain or zstd, and what is hostile in them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from tests.cohort.gradient import RAMP, film, key, path, record
from tests.conftest import S3
from unirg.cohort.corpora import UnreadableImage, parts
from unirg.cohort.corpora.parts import Parts
from unirg.cohort.corpora.rexgradient import METADATA, ReXGradient
from unirg.errors import UserError
from unirg.study import Image, Study

FILMS = {path(patient, patient, n): film(RAMP + patient * 10 + n) for patient in (1, 2, 3) for n in (1, 2)}

Form = Literal[0, 1, 2]


def tar(members: Iterable[tuple[tarfile.TarInfo, bytes]], form: Form = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def tarred(files: dict[str, bytes], form: Form = tarfile.GNU_FORMAT, prefix: str = "") -> bytes:
    folder = tarfile.TarInfo(f"{prefix}deid_png")
    folder.type = tarfile.DIRTYPE
    return tar(
        [(folder, b""), *((tarfile.TarInfo(prefix + name), data) for name, data in files.items())], form
    )


def zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True) if data else b""


def cut(data: bytes, count: int) -> list[bytes]:
    size = -(-len(data) // count)
    return [data[start : start + size] for start in range(0, len(data), size)]


def halves(form: Form = tarfile.GNU_FORMAT) -> list[bytes]:
    items = list(FILMS.items())
    return [tarred(dict(items[:3]), form), tarred(dict(items[3:]), form)]


def archive(root: Path, pieces: list[bytes], cache: Path | None = None) -> Parts:
    root.mkdir(parents=True, exist_ok=True)
    for number, piece in enumerate(pieces):
        (root / f"deid_png.part{number:02d}").write_bytes(piece)
    found = Parts.found(str(root), "deid_png", str(cache or root / "cache"))
    assert found is not None
    return found


SKIPPED = b"\x50\x2a\x4d\x18\x04\0\0\0size"
LAYOUTS = {
    "a tar cut into pieces": cut(tarred(FILMS), 5),
    "a tar with pax headers, cut": cut(tarred(FILMS, tarfile.PAX_FORMAT), 7),
    "a tar made elsewhere": [tarred(FILMS, prefix="./data/release/")],
    "a tar in each part": halves(),
    "a zstd tar cut into pieces": cut(zstd(tarred(FILMS)), 3),
    "a zstd tar in each part": [zstd(half) for half in halves()],
    "a zstd frame in each part, of one tar": [zstd(piece) for piece in cut(tarred(FILMS), 3)],
    "as pzstd writes it": cut(b"".join(SKIPPED + zstd(piece) for piece in cut(tarred(FILMS), 4)), 3),
    "twelve parts": cut(tarred(FILMS), 12),
}


@pytest.mark.parametrize("pieces", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_of_the_parts_gives_the_same_images(tmp_path: Path, pieces: list[bytes]) -> None:
    found = pickle.loads(pickle.dumps(archive(tmp_path, pieces)))
    assert not found.prepare()
    assert {name: found.read(name) for name in FILMS} == FILMS
    for name in ("deid_png/none.png", "deid_png", "../x", ""):
        with pytest.raises(UnreadableImage):
            found.read(name)


@pytest.mark.parametrize("layout", ["a tar cut into pieces", "a zstd tar in each part"])
def test_the_adapter_reads_images_out_of_parts_on_any_file_system(tmp_path: Path, layout: str) -> None:
    memory = fsspec.filesystem("memory")
    root = f"/parts{len(layout)}"
    memory.pipe(f"{root}/{METADATA['test']}", json.dumps({key(): record()}).encode())
    for number, piece in enumerate(LAYOUTS[layout]):
        memory.pipe(f"{root}/deid_png.part{number:02d}", piece)
    adapter = ReXGradient(f"memory:/{root}", str(tmp_path))
    (study,) = adapter.records()
    assert isinstance(study, Study)
    copy = pickle.loads(pickle.dumps(adapter))
    for image in study.images:
        pixels = copy.read(image)
        assert pixels.shape == RAMP.shape
        assert (pixels.min(), pixels.max()) == (0, 255)
    with pytest.raises(UnreadableImage):
        copy.read(Image(uri="../x.png"))
    memory.pipe(f"{root}/{path()}", film(RAMP[::-1]))  # unpacked: the parts are not looked at
    unpacked = ReXGradient(f"memory:/{root}", str(tmp_path))
    assert np.array_equal(unpacked.read(Image(uri=path())), np.rint(RAMP[::-1] / 257).astype(np.uint8))


def test_parts_are_read_from_s3(tmp_path: Path, moto_s3: S3) -> None:
    bucket, name = moto_s3.bucket(), path(2, 2)
    for folder, data in (("plain", tarred(FILMS)), ("zstd", zstd(tarred(FILMS)))):
        for number, piece in enumerate(cut(data, 2)):
            moto_s3.client().put_object(Bucket=bucket, Key=f"{folder}/deid_png.part{number:02d}", Body=piece)
        found = Parts.found(f"s3://{bucket}/{folder}", "deid_png", str(tmp_path))
        assert found is not None
        assert found.read(name) == FILMS[name]


def hostile(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b"hostile" if kind == tarfile.REGTYPE else b""


HOSTILE = [
    hostile("../../escape.png"),
    hostile("/abs/escape.png"),
    hostile("deid_png/../../escape.png"),
    hostile("deid_png/a\nb.png"),
    hostile("deid_png/c:\\escape.png"),
    hostile("deid_png/link.png", tarfile.SYMTYPE, "/etc/passwd"),
    hostile("deid_png/hard.png", tarfile.LNKTYPE, "deid_png/link.png"),
    hostile("deid_png/tty.png", tarfile.CHRTYPE),
    hostile("deid_png/disk.png", tarfile.BLKTYPE),
    hostile("deid_png/pipe.png", tarfile.FIFOTYPE),
    hostile("deid_png/readme.txt"),
    hostile("deid_png/a.png/b.png"),
    hostile("deid_png/a.png"),
]


@pytest.mark.parametrize("compress", [bytes, zstd], ids=["plain", "zstd"])
def test_members_that_leave_the_folder_or_are_no_plain_file_are_refused_and_counted(
    tmp_path: Path, compress: type[bytes]
) -> None:
    data = compress(tar([*HOSTILE, *((tarfile.TarInfo(name), data) for name, data in FILMS.items())]))
    found = archive(tmp_path / "corpus", [data], tmp_path / "cache")
    refused = {"unsafe name": 5, "link": 2, "no plain file": 3}
    assert found.prepare() == refused
    assert archive(tmp_path / "corpus", [data], tmp_path / "cache").prepare() == refused  # remembered
    assert {name: found.read(name) for name in FILMS} == FILMS
    assert (found.read("deid_png/a.png"), found.read("deid_png/a.png/b.png")) == (b"hostile", b"hostile")
    for member, _ in HOSTILE[:11]:
        with pytest.raises(UnreadableImage):
            found.read(member.name)
    written = [file for file in tmp_path.rglob("*") if not file.is_dir()]
    assert not any(file.is_symlink() for file in written)
    names = {file.name for file in written} - {"deid_png.part00", "done.json", "index.sqlite"}
    assert names <= {
        hashlib.sha256(name.encode()).hexdigest()
        for name in [*FILMS, "deid_png/a.png", "deid_png/a.png/b.png"]
    }


def test_an_image_larger_than_the_decoder_accepts_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "MAX_BYTES", 1000)
    big = {"deid_png/big.png": b"x" * 1001, **FILMS}
    for number, data in enumerate((tarred(big), zstd(tarred(big)))):
        found = archive(tmp_path / str(number), [data])
        assert found.prepare() == {"too large": 1}
        assert found.read(path()) == FILMS[path()]


def test_a_decompression_bomb_is_stopped_by_what_the_archive_may_unpack_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "SLACK", 2**20)
    bomb = zstd(tarred({"deid_png/a.png": bytes(40 * 2**20)}))
    found = archive(tmp_path, [bomb])
    with pytest.raises(UserError, match="unpacks to more than 20 times its size"):
        found.prepare()
    assert sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*") if file.is_file()) < 2**21


def damaged() -> dict[str, list[bytes]]:
    whole = tarred(FILMS)
    flipped = bytearray(whole)
    flipped[512 + 100] ^= 0xFF
    packed = zstd(whole)
    broken = bytearray(packed)
    broken[len(broken) // 2 : len(broken) // 2 + 64] = bytes(64)
    huge = tarfile.TarInfo("deid_png/a.png")
    huge.size = 2**60
    longest = tarfile.TarInfo("././@LongLink")
    longest.type, longest.size = tarfile.GNUTYPE_LONGNAME, 2**30
    pax = tarfile.TarInfo("x")
    pax.type, pax.size = tarfile.XHDTYPE, 20
    endless = pax.tobuf(tarfile.GNU_FORMAT) + b"9999 path=x\n".ljust(512, b"\0")
    negative = pax.tobuf(tarfile.GNU_FORMAT) + b"17 size=-1000000\n".ljust(512, b"\0") + whole
    return {
        "no tar": [b"x" * 2000],
        "a byte": [b"x"],
        "cut off": [whole[: len(whole) // 2 + 100]],
        "a flipped byte in a header": [bytes(flipped)],
        "cut off between members": [
            whole.rstrip(b"\0").ljust(-(-len(whole.rstrip(b"\0")) // 512) * 512, b"\0")
        ],
        "cut off zstd": [packed[:-20]],
        "broken zstd": [bytes(broken)],
        "no zstd behind zstd": [packed, b"x" * 100],
        "zstd of no tar": [zstd(b"x" * 2000)],
        "a size beyond the end": [huge.tobuf(tarfile.GNU_FORMAT)],
        "a name of a gigabyte": [longest.tobuf(tarfile.GNU_FORMAT) + bytes(2**16)],
        "a pax field beyond its header": [endless],
        "a negative pax size": [negative],
    }


@pytest.mark.parametrize("pieces", damaged().values(), ids=damaged())
def test_damaged_or_incomplete_parts_are_the_users_to_fetch_again(
    tmp_path: Path, pieces: list[bytes]
) -> None:
    found = archive(tmp_path, pieces)
    for _ in range(2):  # what a failed pass left behind does not count as done
        with pytest.raises(UserError, match=r"damaged, incomplete or no tar.*fetch them again"):
            found.prepare()
    assert not list((tmp_path / "cache").rglob("index.sqlite"))


def test_a_missing_part_between_others_is_named_at_once(tmp_path: Path) -> None:
    archive(tmp_path, cut(tarred(FILMS), 4))
    (tmp_path / "deid_png.part02").unlink()
    with pytest.raises(UserError, match="a part between two others is missing"):
        Parts.found(str(tmp_path), "deid_png", str(tmp_path / "cache"))


def test_without_parts_there_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "deid_png.partial").mkdir()
    assert Parts.found(str(tmp_path), "deid_png") is None
    assert Parts.found(str(tmp_path / "nowhere"), "deid_png") is None


def test_an_interrupted_pass_goes_on_without_writing_again_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = archive(tmp_path, [zstd(tarred(FILMS))])
    write = parts._write
    written: list[Path] = []

    def failing(target: Path, data: bytes) -> None:
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(target)
        write(target, data)

    monkeypatch.setattr(parts, "_write", failing)
    with pytest.raises(KeyboardInterrupt):
        found.prepare()
    before = {target: os.stat(target).st_mtime_ns for target in written}
    monkeypatch.setattr(parts, "_write", write)
    found.prepare()
    assert {target: os.stat(target).st_mtime_ns for target in written} == before
    assert {name: found.read(name) for name in FILMS} == FILMS


def test_other_parts_never_meet_what_was_made_of_these(tmp_path: Path) -> None:
    archive(tmp_path, [zstd(tarred(FILMS))]).prepare()
    altered = {name: data[::-1] for name, data in FILMS.items()}
    found = archive(tmp_path, [zstd(tarred(altered)) + zstd(b"\0" * 1024)])
    assert {name: found.read(name) for name in FILMS} == altered
