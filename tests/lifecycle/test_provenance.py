"""Lineage both ways: the data behind a model, and what was made with a cohort or a corpus."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.lifecycle.stores import Made, Name, made, put_shard
from unirg import artifact
from unirg.artifact import Artifact, ArtifactError
from unirg.cohort.reader import INDEX, Index
from unirg.cohort.withdrawal import withdraw
from unirg.errors import UserError
from unirg.lifecycle.lineage import Graph
from unirg.lifecycle.provenance import ancestors, contents, descendants
from unirg.lifecycle.retention import gc

NORTH = {"iu_xray": [[("s10", "train"), ("s11", "train")], [("s20", "test")]]}
SOUTH = {"rexgradient": [[("s30", "train")], [("s40", "test"), ("s41", "test")]]}
Groups = Mapping[str, list[list[Name]]]


def staged(
    store: str, groups: Groups, parts: Mapping[str, Artifact] | None = None, **splits: tuple[str, ...]
) -> Artifact:
    """A cohort of several corpora, a shard for each group; `parts` and their splits as combined ones have."""
    inputs: dict[str, Artifact | str] = {**parts} if parts else {"corpus": "d1"}
    config = Combined(name=repr(groups), splits=splits)
    with artifact.draft(store, "cohort", 1, config, inputs) as draft:
        if draft.committed:
            return draft.committed
        listed = [(corpus, group) for corpus, all_of in groups.items() for group in all_of]
        shards = tuple(put_shard(store, group, corpus) for corpus, group in listed)
        names = "+".join(sorted(groups))
        index = Index(corpus=names, hold_out=(), shards=shards, dropped={}, account={}, duplicates={})
        (draft.out / INDEX).write_text(index.model_dump_json())
        return draft.commit({"studies": sum(len(group) for _, group in listed)})


class Combined(Made):
    splits: dict[str, tuple[str, ...]] = {}
    """As `CombineConfig` has it."""


def world(store: str) -> dict[str, Artifact]:
    """Two corpora, the training split of one combined with the test split of the other, a policy of each."""
    north, south = staged(store, NORTH), staged(store, SOUTH)
    both = staged(
        store,
        {"iu_xray": NORTH["iu_xray"][:1], "rexgradient": SOUTH["rexgradient"][1:]},
        {"n": north, "s": south},
        n=("train",),
        s=("test",),
    )
    base = made(store, "base", {"cohort": south}, source="hub")
    sft = made(store, "sft", {"cohort": both, "parent": base})
    grpo = made(store, "grpo", {"cohort": both, "parent": sft})
    score = made(store, "score", {"cohort": south, "model": grpo.digest})
    evaluation = made(store, "evaluate", {"cohort": south, "predictions:grpo": score})
    found = {"north": north, "south": south, "both": both, "base": base, "sft": sft, "grpo": grpo}
    return found | {"score": score, "evaluate": evaluation}


def named(all_of: dict[str, Artifact], uris: list[str]) -> list[str]:
    by_uri = {one.uri: name for name, one in all_of.items()}
    return [by_uri[uri] for uri in uris]


def test_the_data_in_a_model_are_its_cohorts_with_their_corpora_and_counts(store: str) -> None:
    all_of = world(store)
    found = ancestors(store, all_of["grpo"].uri)
    data = {name: one for one in found.data for name in named(all_of, [one.uri])}
    assert data.keys() == {"both", "south"}
    assert data["both"].studies == {"iu_xray": {"train": 2}, "rexgradient": {"test": 2}}
    assert data["south"].studies == {"rexgradient": {"test": 2, "train": 1}}
    assert data["both"].learned
    assert not data["south"].learned  # the hub's model only stands beside it
    assert set(named(all_of, [one.uri for one in found.artifacts])) == {
        *("north", "south", "both", "base", "sft")
    }
    assert [one.manifest.stage for one in found.artifacts] == ["cohort"] * 3 + ["base", "sft"]
    assert found.unknown == ()


def test_what_was_made_with_a_corpus_and_what_learned_from_it(store: str) -> None:
    all_of = world(store)
    north = descendants(store, corpus="iu_xray")
    made_of = dict(zip(named(all_of, [one.made.uri for one in north]), north, strict=True))
    assert {name: one.learned for name, one in made_of.items()} == {
        "north": False,
        "both": False,
        "sft": True,
        "grpo": True,
        "score": True,
        "evaluate": True,
    }
    south = descendants(store, corpus="rexgradient")
    assert set(named(all_of, [one.made.uri for one in south])) == all_of.keys() - {"north"}
    assert not any(one.learned for one in south)  # of south, only the test split was combined
    with pytest.raises(UserError, match=r"no cohort of .* holds studies of west"):
        descendants(store, corpus="west")


def test_what_was_made_with_an_artifact(tmp_path: Path) -> None:
    store = str(tmp_path)
    all_of = world(store)

    def below(name: str) -> dict[str, bool]:
        found = descendants(store, all_of[name].uri)
        return dict(
            zip(named(all_of, [one.made.uri for one in found]), [o.learned for o in found], strict=True)
        )

    assert below("sft") == {"grpo": False, "score": False, "evaluate": False}
    assert below("evaluate") == {}
    learned = {"both": False, "sft": True, "grpo": True, "score": True, "evaluate": True}
    assert below("north") == learned
    everything = dict.fromkeys(all_of.keys() - {"north", "south"}, False)
    assert below("south") == everything


def test_a_cohort_tells_its_own_studies_and_its_parts(tmp_path: Path) -> None:
    all_of = world(str(tmp_path))
    found = ancestors(str(tmp_path), all_of["both"].uri)
    (data,) = found.data
    assert data.studies == contents(all_of["both"]) == {"iu_xray": {"train": 2}, "rexgradient": {"test": 2}}
    assert set(named(all_of, [one.uri for one in found.artifacts])) == {"north", "south"}


def test_a_dropped_cohort_is_still_told(store: str) -> None:
    source = staged(store, NORTH)
    sft = made(store, "sft", {"cohort": source})
    withdraw(store, ["iu_xray/s10"])
    assert gc(store, drop_withdrawn=True).cohorts == [source.uri]
    (data,) = ancestors(store, sft.uri).data
    assert (data.uri, data.digest, data.learned) == ("", source.digest, True)
    assert data.studies == {"iu_xray": {"train": 2, "test": 1}}
    assert [(one.made.uri, one.learned) for one in descendants(store, corpus="iu_xray")] == [(sft.uri, True)]


def test_a_parent_of_another_store_is_followed_and_a_lost_one_is_named(tmp_path: Path) -> None:
    here, there = str(tmp_path / "here"), tmp_path / "there"
    base = made(str(there), "base", {"cohort": staged(str(there), NORTH)})
    sft = made(here, "sft", {"cohort": staged(here, SOUTH), "parent": base})
    assert sorted(corpus for one in ancestors(here, sft.uri).data for corpus in one.studies) == [
        "iu_xray",
        "rexgradient",
    ]
    found = descendants(here, corpus="iu_xray")
    assert {one.made.manifest.stage: one.learned for one in found} == {"cohort": False, "sft": True}
    there.rename(tmp_path / "gone")
    assert ancestors(here, sft.uri).unknown == (base.uri,)


def test_a_model_retrained_for_years_is_traced_to_its_first_cohort(tmp_path: Path) -> None:
    store = str(tmp_path)
    first = staged(store, NORTH)
    model = made(store, "base", {"cohort": first})
    depth = 40
    for number in range(depth):
        model = made(store, "sft", {"cohort": first, "parent": model}, name=str(number))
    graph = Graph(store, ())
    used = len(inspect.stack(0))
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(used + 30)  # fewer than a call a generation
    try:
        assert graph.behind(model).learned == {first.digest}
    finally:
        sys.setrecursionlimit(limit)
    assert len(ancestors(store, model.uri).artifacts) == depth + 1
    assert all(one.learned for one in descendants(store, first.uri))


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no store at"):
        descendants(str(tmp_path / "none"), corpus="iu_xray")
    staged(str(tmp_path), NORTH)
    with pytest.raises(ArtifactError, match="no artifact at"):
        ancestors(str(tmp_path), str(tmp_path / "sft" / "none"))
