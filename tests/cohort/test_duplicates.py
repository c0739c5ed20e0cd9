"""Near-duplicates: found where they are near, across splits alone, however many there are."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from unirg.cohort.duplicates import (
    BLANK,
    DISTANCE,
    Duplicate,
    across_splits,
    image_fingerprint,
    report_fingerprint,
)
from unirg.study import Study

NORMAL = "The heart is normal in size. The lungs are clear. There is no pleural effusion or pneumothorax."


def report(findings: str | None, impression: str | None = None) -> int:
    study = Study(
        corpus="c", study_id="s", patient_id="p", institution="i", findings=findings, impression=impression
    )
    return report_fingerprint(study)


def found(splits: Sequence[str], values: Sequence[int]) -> list[Duplicate]:
    names = [f"s{row}" for row in range(len(splits))]
    return list(across_splits("image", names, splits, np.asarray(values, np.uint64)))


def bits(a: int, b: int) -> int:
    return (a ^ b).bit_count()


fingerprints = st.integers(1, 2**64 - 1)
changed = st.tuples(fingerprints, st.sets(st.integers(0, 63), max_size=6)).map(
    lambda drawn: (drawn[0], drawn[0] ^ sum(1 << bit for bit in drawn[1]))
)


@given(st.lists(changed, max_size=12), st.randoms())
def test_the_nearest_of_each_other_split_is_found_exactly_where_one_is_near(
    pairs: list[tuple[int, int]], chance: object
) -> None:
    values = [value for pair in pairs for value in pair]
    splits = [("train", "test", "validate")[row % 3] for row in range(len(values))]
    told = {(pair.study_id, pair.other_split): pair.distance for pair in found(splits, values)}
    wanted = {}
    for row, (split, value) in enumerate(zip(splits, values, strict=True)):
        if split == "train" or value == BLANK:
            continue
        for other in {*splits} - {split}:
            near = [bits(value, v) for s, v in zip(splits, values, strict=True) if s == other and v != BLANK]
            if near and min(near) <= DISTANCE:
                wanted[f"s{row}", other] = min(near)
    assert told == wanted


def test_a_pair_is_named_once_from_the_side_that_is_not_trained_on() -> None:
    assert found(["train", "test"], [5, 4]) == [Duplicate("s1", "test", "s0", "train", "image", 1)]


def test_equal_contents_within_a_split_and_empty_ones_are_no_duplicates() -> None:
    assert found(["test", "test", "train"], [7, 7, 7 << 32]) == []
    assert found(["test", "train"], [BLANK, BLANK]) == []


def test_a_hundred_thousand_equal_reports_are_told_in_seconds() -> None:
    began = time.process_time()
    pairs = found(["test", "train"] * 50_000, [12345] * 100_000)
    assert len(pairs) == 50_000
    assert time.process_time() - began < 10


def test_a_report_is_near_itself_in_another_spelling_and_far_from_another() -> None:
    assert report(NORMAL) == report(NORMAL.upper().replace(".", " ;"), "  ")
    assert (
        bits(report(NORMAL), report("Large left pleural effusion with compressive atelectasis.")) > DISTANCE
    )
    assert report("Normal chest.") == report(None) == BLANK


def test_an_image_is_near_itself_in_another_brightness_and_far_from_another() -> None:
    draw = np.random.default_rng(0)
    films = [
        np.kron(draw.integers(40, 200, (16, 16)), np.ones((32, 32), int)).astype(np.uint8) for _ in range(2)
    ]
    noise = draw.integers(-2, 3, films[0].shape)
    darker = np.clip(films[0] * 0.8 + noise, 0, 255).astype(np.uint8)
    assert bits(image_fingerprint(films[0]), image_fingerprint(darker)) <= DISTANCE
    assert bits(image_fingerprint(films[0]), image_fingerprint(films[1])) > DISTANCE
    assert image_fingerprint(np.full((512, 512), 17, np.uint8)) == BLANK


def test_many_skewed_fingerprints_are_told_in_seconds_and_little_memory() -> None:
    """As of phantoms: 64 bits that tell as much as twenty, so that every bucket is full."""
    draw = np.random.default_rng(0)
    drawn = draw.random((50_000, 64)) < np.where(np.arange(64) < 20, 0.5, 0.01)
    values = np.packbits(drawn, axis=1).view(">u8").ravel().astype(np.uint64)
    names = ["test" if row % 5 == 0 else "train" for row in range(len(values))]
    began = time.process_time()
    tracemalloc.start()
    try:
        pairs = list(across_splits("image", names, names, values))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(pairs) > 9_000
    assert time.process_time() - began < 20
    assert peak < 30e6
