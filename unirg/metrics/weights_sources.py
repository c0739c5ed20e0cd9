"""The public checkpoints that the model-based metrics are made of: where, which files, whose licence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Source:
    """One public repository, and what of it a scorer needs."""

    repository: str
    """Its id on the Hugging Face hub; a mirror holds its files in a folder of this name."""
    files: tuple[str, ...]
    """Those that must be there."""
    licence: str
    folder: str = ""
    """Where they go, below the scorer's directory."""
    tokenizer: bool = True
    """It holds a tokenizer too, in one or more of the forms that transformers reads."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 by file, where one is publicly stated."""

    @property
    def page(self) -> str:
        return f"https://huggingface.co/{self.repository}"


_CHECKPOINTS = "StanfordAIMI/RRG_scorers"
_MODEL = ("config.json", "model.safetensors")
_CHEXBERT = "MIT on the hub; its own repository has Stanford's LICENSE.pdf, commercial use by agreement"
_RADGRAPH = "MIT on the hub; trained on RadGraph, which PhysioNet gives to credentialed users alone"

# Facts as found in stored copies of the hub's pages. The stated digests: of the checkpoints in the commits
# that uploaded them (4ccc069 of May 2022, d0c5c61 of March 2024; main had the same files at 3ef1a0c), of
# distilroberta-base on its file's page. Licences: the hub's. Those of CheXbert's own repository
# (github.com/stanfordmlgroup/CheXbert) and of RadGraph's project (physionet.org/content/radgraph) are
# stricter, so they are named too; whose leave is needed is for the user to judge.
SOURCES: dict[str, tuple[Source, ...]] = {
    "chexbert": (
        Source(
            _CHECKPOINTS,
            ("chexbert.pth",),
            _CHEXBERT,
            tokenizer=False,
            digests={"chexbert.pth": "6550703c92d640e1e04d8105a7a185d76ece0f25fcbf033d292785bf22c0fde1"},
        ),
        Source("google-bert/bert-base-uncased", ("config.json", "tokenizer.json"), "Apache-2.0"),
    ),
    "radgraph": (
        Source(
            _CHECKPOINTS,
            ("radgraph.tar.gz",),
            _RADGRAPH,
            tokenizer=False,
            digests={"radgraph.tar.gz": "7808499d3dc6c37859d3283a4258be0364104420224aeae7395f2f0f9c28bbb9"},
        ),
    ),
    "radgraph-xl": (
        Source(
            _CHECKPOINTS,
            ("radgraph-xl.tar.gz",),
            _RADGRAPH,
            tokenizer=False,
            digests={
                "radgraph-xl.tar.gz": "fadb5a3454e8996714b609e3105a07e447fa61aa88fffe966b650959475117b6"
            },
        ),
    ),
    "bertscore": (
        Source(
            "distilbert/distilroberta-base",
            (*_MODEL, "tokenizer.json"),
            "Apache-2.0",
            digests={"model.safetensors": "2b11ca9cf3d2cbb44cc1a93ad96aedc2894231ae6e33e2d2268c3d7b1ff97663"},
        ),
    ),
    "ratescore": (
        Source("Angelakeke/RaTE-NER-Deberta", _MODEL, "MIT", "ner"),
        Source("FremyCompany/BioLORD-2023-C", _MODEL, "IHTSDO's and NLM's (UMLS)", "synonyms"),
    ),
}
"""By scorer, the main source first. RadGraph's archives name an encoder, whose tokenizer is fetched too."""
