"""Lineage both ways: the data behind a model, and what was made with a cohort or a corpus."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.lifecycle.stores import Made, cohort, made, put_shard
from unirg import artifact, storage
from unirg.artifact import Artifact, ArtifactError
from unirg.cohort.reader import INDEX, Index
from unirg.cohort.withdrawal import withdraw
from unirg.config import Config
from unirg.errors import UserError
from unirg.lifecycle.lineage import Graph
from unirg.lifecycle.provenance import ancestors, contents, descendants
from unirg.lifecycle.retention import gc
