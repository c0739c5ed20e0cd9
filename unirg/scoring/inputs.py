"""What an archive may be given as: a cohort, a ReXrank test file, or the raw studies of a corpus.

Whatever is no cohort yet is staged into the store first, so images are decoded once, and an archive's
identity rests on its content. A study needs no report, and each is in the split `zero_shot`: nothing was
trained on it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import get_args

from unirg import artifact, config
from unirg.artifact import Artifact
from unirg.cohort.stage import StageConfig, open_corpus, stage
from unirg.errors import UserError

CORPORA = tuple(name for name in get_args(StageConfig.model_fields["corpus"].annotation) if name != "phantom")


def archive_of(uri: str, corpus: str, store: str, overrides: Sequence[str] = ()) -> Artifact:
    """The cohort of an archive.

    Args:
        uri: of a cohort artifact, of a ReXrank test file (.json), or of the data of a named corpus, such as a
            folder of DICOM studies with the corpus `institution`.
        corpus: which adapter reads raw studies; empty for a cohort or a ReXrank file.
        store: where raw studies are staged.
        overrides: `key=value` settings of staging, such as `institution.unknown_view=frontal`.

    Raises:
        UserError: nothing is there, no adapter is named, or staging fails.
    """
    if artifact.find(uri.rstrip("/")):
        if corpus or overrides:
            raise UserError(f"{uri} is an artifact already: leave out corpus and settings of staging")
        return artifact.open_artifact(uri, "cohort")
    if not corpus and uri.lower().endswith(".json"):
        corpus = "rexrank"
    if corpus not in CORPORA:
        what = (
            f"no corpus is called {corpus}"
            if corpus
            else "the archive is neither a cohort nor a ReXrank file (.json)"
        )
        raise UserError(f"{what}: name the corpus whose adapter reads it, one of {', '.join(CORPORA)}")
    settings = config.load(StageConfig, None, overrides, corpus=corpus, data=uri, reports="optional")
    held_out = settings.model_copy(update={"hold_out": (open_corpus(settings).name,)})
    made = stage(held_out, store)
    counts = ", ".join(f"{name} {value}" for name, value in made.manifest.counts.items())
    print(f"archive: {counts}: {made.uri}", file=sys.stderr)
    return made
