"""Lineage: a policy that learned from a place is refused for the zero-shot suite, however it learned."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.evaluation.made_scores import study
from tests.lifecycle.stores import Made, made
from unirg import artifact, storage
from unirg.artifact import Artifact
from unirg.cohort.reader import INDEX, Index, Shard
from unirg.evaluation.unseen import Seen, check_unseen, held_out
from unirg.lifecycle.lineage import Roll
from unirg.study import to_table


def cohort(store: str, *rows: tuple[str, str, str]) -> Artifact:
    """A cohort of (split, corpus, institution), three studies of each."""
    with artifact.draft(store, "cohort", 1, Made(name=repr(rows)), {"corpus": "d1"}) as draft:
        if draft.committed:
            return draft.committed
        shards = []
        for split, corpus, institution in rows:
            studies = [study(n, corpus, split, institution=institution) for n in range(3)]
            buffer = io.BytesIO()
            pq.write_table(to_table(studies), buffer)
            data = buffer.getvalue()
            shards.append(Shard(sha256=storage.sha256(data), bytes=len(data), split=split, studies=3))
            storage.put_new(storage.join(store, shards[-1].name), data)
        index = Index(corpus="many", hold_out=(), shards=tuple(shards), dropped={}, account={}, duplicates={})
        (draft.out / INDEX).write_text(index.model_dump_json())
        return draft.commit({})


HELD = [
    ("train", "mimic_cxr", "bidmc"),
    ("test", "iu_xray", "indiana"),
    ("zero_shot", "phantom", "summit"),
    ("train", "phantom", "valley"),
]
SEEN = [("train", "mimic_cxr", "bidmc"), ("train", "iu_xray", "indiana"), ("train", "phantom", "summit")]
PLACES = ["iu_xray", "summit"]


def trained(
    store: str,
    base: Sequence[tuple[str, str, str]],
    source: str = "hub",
    on: Mapping[str, Sequence[tuple[str, str, str]]] | None = None,
) -> Artifact:
    """base -> sft -> grpo, each on the held-out cohort unless told otherwise."""
    policy = made(store, "base", {"cohort": cohort(store, *base)}, source=source)
    for stage in ("sft", "grpo"):
        rows = (on or {}).get(stage, HELD)
        policy = made(
            store,
            stage,
            {"cohort": cohort(store, *rows), "parent": policy, "prompts": "3"},
        )
    return policy


def named(made: Artifact) -> str:
    return " ".join(made.uri.split("/")[-2:])


def test_a_policy_whose_cohorts_held_the_places_out_passes(store: str) -> None:
    found = check_unseen(trained(store, HELD), PLACES)
    assert found.places == ("iu_xray", "summit")
    assert (len(found.cohorts), found.published, found.unknown) == (1, ("hub",), ())
    assert found.sentence.startswith("lineage checked: iu_xray, summit held out of all training")
    assert "hub, whose data are not known" in found.sentence


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_policy_that_saw_a_place_in_any_of_its_stages_is_refused(tmp_path: Path, stage: str) -> None:
    policy = trained(str(tmp_path), HELD, on={stage: SEEN})
    with pytest.raises(Seen, match=rf"iu_xray .* {stage} \w+ learned from 3 .*hold_out=\[iu_xray\]"):
        check_unseen(policy, PLACES)
    with pytest.raises(Seen, match=rf"summit is no zero-shot set .* {stage} "):
        check_unseen(policy, ["summit"])
    assert check_unseen(policy, ["stanford"]).unknown == ()


def test_a_toy_base_learned_from_its_cohort_and_a_published_one_did_not(tmp_path: Path) -> None:
    with pytest.raises(Seen, match=r"base \w+ learned from 3 studies"):
        check_unseen(trained(str(tmp_path), SEEN, source="toy"), PLACES)
    assert check_unseen(trained(str(tmp_path), SEEN), PLACES).published == ("hub",)


def test_a_place_that_chose_the_checkpoint_was_seen(tmp_path: Path) -> None:
    policy = trained(str(tmp_path), HELD, on={"sft": [*HELD, ("validate", "iu_xray", "indiana")]})
    with pytest.raises(Seen, match="iu_xray is no zero-shot set"):
        check_unseen(policy, PLACES)


def test_rexranks_test_set_and_its_corpus_are_one_place(tmp_path: Path) -> None:
    policy = trained(str(tmp_path), HELD, on={"grpo": SEEN})
    with pytest.raises(Seen, match="rexrank_iu_xray is no zero-shot set"):
        check_unseen(policy, ["rexrank_iu_xray"])


def test_what_cannot_be_followed_is_unknown_rather_than_unseen(tmp_path: Path) -> None:
    here, there = str(tmp_path / "here"), tmp_path / "there"
    base = made(str(there), "base", {"cohort": cohort(str(there), *HELD)})
    policy = made(here, "sft", {"cohort": cohort(here, *HELD), "parent": base})
    assert check_unseen(policy, PLACES).unknown == ()
    there.rename(tmp_path / "gone")
    found = check_unseen(policy, PLACES)
    assert found.unknown == (named(base),)
    assert found.sentence.startswith("lineage unknown beyond")


def test_a_run_that_names_no_cohort_or_no_parent_is_unknown(tmp_path: Path) -> None:
    store = str(tmp_path)
    orphan = made(store, "sft", {"cohort": cohort(store, *HELD)})
    assert check_unseen(orphan, PLACES).unknown == (f"{named(orphan)}, which names no parent",)
    rootless = made(store, "grpo", {"parent": made(store, "base", {}, source="hub")})
    found = check_unseen(rootless, PLACES)
    assert found.unknown == (f"{named(rootless)}, which names no cohort",)
    assert check_unseen(rootless, []).sentence.startswith("lineage unknown")


def test_an_artifact_that_moved_within_its_store_is_found_by_its_digest(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    policy = trained(store, HELD, on={"sft": SEEN})
    shutil.move(store, tmp_path / "moved")
    moved = artifact.open_artifact(policy.uri.replace(store, str(tmp_path / "moved")))
    with pytest.raises(Seen, match="iu_xray is no zero-shot set"):
        check_unseen(moved, PLACES)


def test_of_a_dropped_cohort_the_roll_still_tells_the_corpora(tmp_path: Path) -> None:
    store = str(tmp_path)
    for rows, seen in ((SEEN, True), (HELD[:1], False)):
        source = cohort(store, *rows)
        policy = made(store, "sft", {"cohort": source, "parent": made(store, "base", {}, source="hub")})
        Roll.of(source).put(store)
        shutil.rmtree(storage.local_path(source.uri))
        if seen:
            with pytest.raises(Seen, match=r"iu_xray is no zero-shot set .*dropped since"):
                check_unseen(policy, PLACES)
        else:
            (unknown,) = check_unseen(policy, PLACES).unknown
            assert unknown.startswith("the institutions of")


def test_the_places_of_a_zero_shot_set_are_its_institutions_and_corpora_wholly_in_it() -> None:
    studies = [
        *[study(n, "phantom", "test", institution="valley") for n in range(2)],
        *[study(n, "phantom", "zero_shot", institution="summit") for n in range(2)],
        *[study(n, "iu_xray", "zero_shot", institution="indiana") for n in range(2)],
    ]
    assert held_out(studies, studies) == {"summit", "indiana", "iu_xray"}
    assert held_out(studies[:2], studies) == frozenset()


def test_a_corpus_of_which_a_part_was_trained_on_is_not_held_out_where_that_part_is_not_evaluated() -> None:
    away = [study(n, "phantom", "zero_shot", institution="summit") for n in range(2)]
    assert held_out(away, [*away, study(0, "phantom", "train", institution="valley")]) == {"summit"}


def test_predictions_are_followed_by_the_digest_of_their_model(tmp_path: Path) -> None:
    store = str(tmp_path)
    for rows in (HELD, SEEN):
        source = cohort(store, *rows)
        policy = made(store, "sft", {"cohort": source, "parent": made(store, "base", {}, source="hub")})
        said = made(store, "score", {"cohort": source, "model": policy.digest, "prompts": "3"})
        if rows == SEEN:
            with pytest.raises(Seen, match="iu_xray is no zero-shot set"):
                check_unseen(said, PLACES)
        else:
            assert check_unseen(said, PLACES).unknown == ()
    lost = made(
        store, "score", {"cohort": cohort(store, *HELD), "model": "0123456789abcdef0", "prompts": "3"}
    )
    assert check_unseen(lost, PLACES).unknown == ("model 0123456789abcdef",)


def test_no_sentence_says_where_somebody_keeps_what_it_names(tmp_path: Path) -> None:
    store = str(tmp_path / "st mary, ward (3)")
    with pytest.raises(Seen) as refused:
        check_unseen(trained(store, HELD, on={"grpo": SEEN}), PLACES)
    source = str(tmp_path / "weights" / "Qwen3-VL")
    passed = check_unseen(trained(store, HELD, source=source), PLACES)
    orphan = check_unseen(made(store, "sft", {"cohort": cohort(store, *HELD)}), PLACES)
    assert passed.published == ("Qwen3-VL",)
    for words in (str(refused.value), passed.sentence, orphan.sentence, *passed.cohorts):
        assert "mary" not in words
        assert "/" not in words
