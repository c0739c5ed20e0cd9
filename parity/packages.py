"""The upstream packages within reach: a process of .venv-parity that scores what it is asked to."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from parity import corpus, originals

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-parity" / "bin" / "python"


class Packages:
    """The process, from `with` to its end; it starts in, and reads weights from, a folder of originals."""

    def __init__(self, root: Path, threads: int = 1) -> None:
        """
        Args:
            root: what `originals.write` wrote.
        """
        if not PYTHON.exists():
            raise SystemExit(f"{PYTHON} is missing: build the packages' environment with tools/parity.sh")
        self._log = root / "upstream.log"
        self._root, self._threads = root, threads

    def __enter__(self) -> Packages:
        environment = {
            **os.environ,
            "XDG_CACHE_HOME": str((self._root / "cache").resolve()),
            "OMP_NUM_THREADS": str(self._threads),
            "HF_HUB_OFFLINE": "1",
            # PyRuSH tells of every token, which takes longer than finding the sentences.
            "LOGURU_LEVEL": "ERROR",
            "TOKENIZERS_PARALLELISM": "false",
            "CUDA_VISIBLE_DEVICES": "",
        }
        self._process = subprocess.Popen(
            [PYTHON, "-P", ROOT / "parity" / "upstream.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.open("w"),
            text=True,
            env=environment,
            cwd=self._root / "hub",
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        if kind:
            self._process.kill()
        self._process.wait()

    def ask(self, package: str, **asked: Any) -> dict[str, Any]:
        """What a package gives for {"pairs": ...} or {"texts": ...}; "cpu" and "wall" are its seconds."""
        assert self._process.stdin
        assert self._process.stdout
        asked |= {"package": package, "baseline": str(corpus.BASELINE.resolve())}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            last = self._log.read_text().strip().splitlines()[-12:]
            raise SystemExit("\n".join([f"{package} failed in .venv-parity; the end of {self._log}:", *last]))
        return json.loads(line)

    def score(self, package: str, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
        return self.ask(package, pairs=list(pairs))


def prepare(root: Path, weights: Path) -> Path:
    """The originals of these weights, written once."""
    place = root / "originals"
    if not (place / "done").exists():
        originals.write(place, weights)
        (place / "done").touch()
    return place
