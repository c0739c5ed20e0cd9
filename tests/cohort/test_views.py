"""Names of views."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unirg.cohort.views import UNKNOWN, view_of, views_of


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


def test_every_view_token_of_rexgradient_is_known_unless_it_names_none() -> None:
    tokens = {
        "frontal": ("PA", "AP", "POSTERO_ANTERIOR", "ANTERO_POSTERIOR"),
        "lateral": ("LATERAL", "LAT", "LL"),
        "other": (
            "AP AXIAL",
            "LAO",
            "LPO",
            "RAO",
            "RPO",
            "DECUBITUS",
            "KUB",
            "OBLIQUE",
            "PICC LINE",
            "OTHER",
        ),
        "unknown": ("ERECT", "SUPINE", "N/A", "None", "UNKNOWN"),
    }
    assert {token: view_of(token)[0] for names in tokens.values() for token in names} == {
        token: view for view, names in tokens.items() for token in names
    }


@pytest.mark.parametrize(
    ("names", "images", "expected"),
    [
        (["PA", "LL"], 2, [("frontal", "PA"), ("lateral", None)]),
        (["PA", None, 3], 3, [("frontal", "PA"), UNKNOWN, UNKNOWN]),
        (["Frontal"], 2, [UNKNOWN, UNKNOWN]),
        (["Lateral", "Frontal", "Lateral"], 2, [UNKNOWN, UNKNOWN]),
        (["PA", "PA", "PA"], 2, [("frontal", "PA"), ("frontal", "PA")]),
        (["PA", "AP", "PA"], 2, [("frontal", None), ("frontal", None)]),
        ([], 1, [UNKNOWN]),
        (["PA"], 0, []),
    ],
)
def test_views_that_are_not_parallel_to_the_images_tell_only_what_they_agree_on(
    names: list[str], images: int, expected: list[tuple[str, str | None]]
) -> None:
    assert views_of(names, images) == expected


@given(st.text())
def test_any_text_has_a_view_and_only_a_frontal_has_a_projection(name: str) -> None:
    view, projection = view_of(name)
    assert view in ("frontal", "lateral", "other", "unknown")
    assert projection is None or view == "frontal"
