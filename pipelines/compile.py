"""Compile every pipeline to IR YAML: `python -m pipelines.compile [FOLDER]`."""

from __future__ import annotations

import sys
from pathlib import Path

from kfp import compiler

from pipelines.retrain import retrain
from pipelines.score_archive import score_archive
from pipelines.sweep import sweep
from pipelines.train import train

PIPELINES = {"train": train, "sweep": sweep, "score_archive": score_archive, "retrain": retrain}


def compile_all(folder: Path) -> list[Path]:
    """Write one YAML per pipeline; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, pipeline in PIPELINES.items():
        target = folder / f"{name}.yaml"
        compiler.Compiler().compile(pipeline, str(target))
        written.append(target)
    return written


if __name__ == "__main__":
    for path in compile_all(Path(sys.argv[1] if len(sys.argv) > 1 else "pipelines/compiled")):
        print(path)
