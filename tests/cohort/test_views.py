"""Names of views."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unirg.cohort.views import UNKNOWN, view_of


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Frontal", ("frontal", None)),
        ("Lateral", ("lateral", None)),
        ("PA", ("frontal", "PA")),
        ("AP", ("frontal", "AP")),
        ("LL", ("lateral", None)),
        ("postero-anterior", ("frontal", "PA")),
        ("antero-posterior", ("frontal", "AP")),
        ("left lateral", ("lateral", None)),
        ("POSTERO_ANTERIOR", ("frontal", "PA")),
        ("ANTERO_POSTERIOR", ("frontal", "AP")),
        (" pa ", ("frontal", "PA")),
        ("AP AXIAL", ("other", None)),
        ("XTABLE LATERAL", ("other", None)),
        ("PA LLD", ("other", None)),
        ("RAO", ("other", None)),
    ],
)
def test_every_corpus_name_of_a_view_has_its_meaning(name: str, expected: tuple[str, str | None]) -> None:
    assert view_of(name) == expected


@pytest.mark.parametrize("name", [None, "", "UNKNOWN", "N/A", "None", "nan", "Erect", "SUPINE"])
def test_a_missing_name_or_a_position_is_an_unknown_view(name: str | None) -> None:
    assert view_of(name) == UNKNOWN


@given(st.text())
def test_any_text_has_a_view_and_only_a_frontal_has_a_projection(name: str) -> None:
    view, projection = view_of(name)
    assert view in ("frontal", "lateral", "other", "unknown")
    assert projection is None or view == "frontal"
