"""The weights of the model-based metrics: where they come from, where they lie, whether they fit.

Each scorer reads one directory, `<weights>/<scorer>/`, written by `unirg weights fetch` from the original
public checkpoints (`weights_fetch.py`) or by the training of the toy scorers; `source.json` in it says which.
Only safetensors are read here: nothing that a hub or a mirror serves runs as code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unirg import storage
from unirg.config import canonical_json
from unirg.errors import UserError

if TYPE_CHECKING:
    import torch

RECORD = "source.json"
"""Where a scorer's files came from; no part of its identity."""


@dataclass(frozen=True)
class Source:
    """One public repository, and what of it a scorer needs."""

    repository: str
    """Its id on the Hugging Face hub; a mirror holds its files in a folder of this name."""
    files: tuple[str, ...]
    licence: str
    folder: str = ""
    """Below the scorer's directory."""
    digests: tuple[tuple[str, str], ...] = ()
    """(file, SHA-256) where one is publicly stated."""

    @property
    def page(self) -> str:
        return f"https://huggingface.co/{self.repository}"


_MODEL = ("config.json", "model.safetensors")
_SCORERS = "StanfordAIMI/RRG_scorers"
_BERT = Source("google-bert/bert-base-uncased", ("config.json", "tokenizer.json"), "Apache-2.0")

SOURCES: dict[str, tuple[Source, ...]] = {
    "chexbert": (Source(_SCORERS, ("chexbert.pth",), "MIT"), _BERT),
    "radgraph": (Source(_SCORERS, ("radgraph.tar.gz",), "MIT"),),
    "radgraph-xl": (Source(_SCORERS, ("radgraph-xl.tar.gz",), "MIT"),),
    "bertscore": (Source("distilbert/distilroberta-base", _MODEL, "Apache-2.0"),),
    "ratescore": (
        Source("Angelakeke/RaTE-NER-Deberta", _MODEL, "MIT", "ner"),
        Source("FremyCompany/BioLORD-2023-C", _MODEL, "IHTSDO and NLM (UMLS)", "synonyms"),
    ),
}
"""By scorer, the main source first."""


def require(directory: Path, scorer: str, files: Sequence[str]) -> None:
    """Refuse a scorer's directory that lacks one of its files.

    Raises:
        UserError: a file is missing or empty; it names the file, its source, licence, and the command.
    """
    for name in files:
        path = directory / name
        if path.is_file() and path.stat().st_size:
            continue
        state = "is empty" if path.is_file() else "is missing"
        raise UserError(f"{path} {state}: {_origin(scorer, name)}get it with: unirg weights fetch {scorer}")


def _origin(scorer: str, name: str) -> str:
    sources = SOURCES.get(scorer, ())
    inside = [source for source in sources if source.folder and name.startswith(f"{source.folder}/")]
    return "".join(
        f"it is made of {', '.join(source.files)} of {source.page} (licence: {source.licence}); "
        for source in (inside or sources)[:1]
    )


def identity(directory: Path) -> str:
    """SHA-256 over names and digests of a scorer's files, wherever they came from.

    Raises:
        UserError: there is no such directory.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is no directory with weights: get it with unirg weights fetch")
    files = {
        path.relative_to(directory).as_posix(): storage.sha256_file(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != RECORD
    }
    return storage.sha256(canonical_json(files))


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, by name, on the CPU.

    Raises:
        UserError: the file is missing, truncated or no safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with storage.explained(str(path)):
            return load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise UserError(
            f"cannot read the weights in {path} ({error}): fetch them again with unirg weights fetch --again"
        ) from error


def fit(
    module: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    origin: Path | str,
    ignore: Sequence[str] = (),
) -> None:
    """Put the tensors into the module, each and every one; a module's own dtype stays.

    Args:
        origin: where the tensors were read, for the error.
        ignore: prefixes of names that the file may have and the module needs not.

    Raises:
        UserError: a tensor is missing, left over, of another shape, or holds NaN or infinities.
    """
    wanted = module.state_dict()
    given = {
        name: tensor
        for name, tensor in tensors.items()
        if name in wanted or not name.startswith(tuple(ignore))
    }
    wrong = [f"{name} is missing" for name in wanted if name not in given]
    wrong += [f"{name} is left over" for name in given if name not in wanted]
    wrong += [
        f"{name} is {tuple(given[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    wrong += [f"{name} is not finite" for name, tensor in given.items() if not bool(tensor.isfinite().all())]
    if wrong:
        raise UserError(
            f"the weights in {origin} are not of this architecture: {len(wrong)} tensors do not fit "
            f"({wrong[0]}); fetch them again with unirg weights fetch, or name a complete directory"
        )
    module.load_state_dict(given)
