"""Original checkpoints -> safetensors: archives unpacked and pickles read without running what they hold."""

from __future__ import annotations

import gzip
import lzma
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

from unirg import storage
from unirg.errors import UserError

MAX_BYTES = 16 << 30
"""Of an archive's content; all the originals together have 4 GB."""
NOT_ORIGINAL = "it is no whole, original file: get it again from its source"


def unpack(archive: Path, target: Path, wanted: Callable[[str], bool]) -> None:
    """The wanted regular files of a tar archive, compressed or not; nothing else of it.

    Raises:
        UserError: the archive is truncated or damaged, holds more than 16 GiB, or a member that would leave
            the directory.
    """
    total = 0
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                plain = tarfile.data_filter(member, str(target))
                total += member.size
                _bounded(archive, total)
                if member.isreg() and wanted(_plain(plain.name)):
                    tar.extract(member, target, filter="data")
            # To the last byte, where the checksum of the compression is, and without which a cut goes unseen.
            while rest := len(tar.fileobj.read(1 << 20)) if tar.fileobj else 0:
                total += rest
                _bounded(archive, total)
    except tarfile.FilterError as error:
        raise UserError(f"{archive} is refused: {error}; {NOT_ORIGINAL}") from None
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise UserError(f"{archive} cannot be unpacked ({error}): {NOT_ORIGINAL}") from error


def _bounded(archive: Path, total: int) -> None:
    if total > MAX_BYTES:
        raise UserError(f"{archive} holds more than {MAX_BYTES >> 30} GiB: {NOT_ORIGINAL}")


def _plain(name: str) -> str:
    return name.removeprefix("./")


def to_safetensors(pickled: Path, target: Path) -> None:
    """The tensors of a `.pth` or `.th`, as they are but for names: DataParallel's `module.` goes.

    A training checkpoint's `model_state_dict` is taken, its optimizer left.

    Raises:
        UserError: the file is truncated, or pickles anything but tensors (which could be code).
    """
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with storage.explained(str(pickled)):
            found = torch.load(pickled, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{pickled} is refused: it pickles more than tensors, which could run code when read "
            f"(torch.load with weights_only=True); {NOT_ORIGINAL}"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{pickled} cannot be read ({type(error).__name__}): {NOT_ORIGINAL}") from error
    if isinstance(found, dict) and "model_state_dict" in found:
        found = found["model_state_dict"]
    if not isinstance(found, dict) or not found:
        raise UserError(f"{pickled} holds no tensors by name: {NOT_ORIGINAL}")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise UserError(f"{pickled} holds {name!r}, which is no tensor with a name: {NOT_ORIGINAL}")
    # safetensors knows no sharing: what shared memory becomes copies.
    tensors = {name.removeprefix("module."): tensor.clone().contiguous() for name, tensor in found.items()}
    try:
        save_file(tensors, target, {"format": "pt"})
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"cannot write {target} ({error}): free space, or choose another place") from error


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
