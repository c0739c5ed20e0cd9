"""What never changes a score in fp32: batches, order, duplicates, windows, the cache, threads, processes.

Over small random models of the real architectures, so that every text has another score.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.metrics import tiny, tiny_radgraph, tiny_ratescore
from unirg.errors import UserError
from unirg.metrics.conditions import LABELS
from unirg.metrics.encoder import Compute
from unirg.metrics.engine import Engine
from unirg.metrics.scorer import Pair

ROOT = Path(__file__).parents[2]
SCORES = (
    *("bleu2", "rouge_l", "bertscore", "sembscore", "sembscore_labels", "radgraph", "radcliq_v1"),
    "ratescore",
)
TOLERANCE = 1e-5
Values = dict[str, float]
Alone = dict[Pair, Values]
_chance = random.Random(0)


def _made(words: int) -> str:
    return " ".join(_chance.choices(tiny.WORDS.split(), k=words))


def _edited(text: str) -> str:
    """The text with a word changed: what a candidate mostly is to its reference."""
    words = text.split(" ")
    words[_chance.randrange(len(words))] = "clear"
    return " ".join(words)


# The longest hostile text costs a random RadGraph seconds; one beyond every encoder's limit will do here.
TEXTS = [*map(_made, (1, 2, 3, 7, 8, 9, 15, 16, 17, 40)), *(text[:4800] for text in tiny.HOSTILE)]
PAIRS = [(_chance.choice(TEXTS), _chance.choice(TEXTS)) for _ in range(12)]
PAIRS += [(_edited(text), text) for text in (_made(30) for _ in range(12))]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("weights")
    for name in ("chexbert", "bertscore"):
        (root / name).mkdir()
        getattr(tiny, name)(root / name)
    tiny_radgraph.write(root / "radgraph")
    tiny_ratescore.directory(root / "ratescore")
    return root


@pytest.fixture(scope="module")
def alone(weights: Path) -> Alone:
    """The scores of each pair, scored by itself."""
    scoring = Engine(SCORES, str(weights), window=1, memory=0)
    return {pair: next(iter(scoring.score([pair]))).values for pair in PAIRS}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cache that fills from test to test."""
    return str(tmp_path_factory.mktemp("cache") / "scores")


def check(found: Sequence[Values], pairs: Sequence[Pair], alone: Alone) -> None:
    assert len(found) == len(pairs)
    for values, pair in zip(found, pairs, strict=True):
        assert values == pytest.approx(alone[pair], rel=0, abs=TOLERANCE)


def test_random_models_tell_texts_apart(alone: Alone) -> None:
    least = {"bertscore": 12, "sembscore": 12, "radgraph": 5, "radcliq_v1": 12, "ratescore": 12}
    for name, distinct in least.items():
        assert len({round(values[name], 4) for values in alone.values()}) >= distinct


@settings(max_examples=8)
@given(
    pairs=st.lists(st.sampled_from(PAIRS), max_size=16),
    tokens=st.integers(1, 1200),
    window=st.integers(1, 9),
    memory=st.sampled_from([0, 5_000, 1 << 30]),
    cached=st.booleans(),
)
def test_batches_order_duplicates_windows_and_the_cache_change_no_score(
    weights: Path,
    alone: Alone,
    cache: str,
    pairs: list[Pair],
    tokens: int,
    window: int,
    memory: int,
    cached: bool,
) -> None:
    compute = Compute(tokens=tokens)
    scoring = Engine(SCORES, str(weights), compute, cache if cached else "", window=window, memory=memory)
    check([scored.values for scored in scoring.score(pairs)], pairs, alone)


@pytest.fixture
def one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_the_number_of_threads_changes_no_score(weights: Path, alone: Alone) -> None:
    import torch

    for threads in (1, 2):
        torch.set_num_threads(threads)
        found = Engine(SCORES, str(weights)).score(PAIRS[12:])
        check([scored.values for scored in found], PAIRS[12:], alone)


PROCESS = """
import json, sys
from unirg.metrics.engine import Engine
weights, cache, scores, pairs = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.load(sys.stdin)
found = Engine(scores, weights, cache=cache, window=3).score(tuple(pair) for pair in pairs)
print(json.dumps([scored.values for scored in found]))
"""


def test_two_processes_with_one_cache_change_no_score(weights: Path, alone: Alone, tmp_path: Path) -> None:
    shared = str(tmp_path / "shared")
    command = [sys.executable, "-c", PROCESS, str(weights), shared, json.dumps(SCORES)]
    other = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdin is not None
    other.stdin.write(json.dumps(PAIRS))
    other.stdin.close()
    for _ in range(2):
        found = Engine(SCORES, str(weights), cache=shared, window=4).score(PAIRS)
        check([scored.values for scored in found], PAIRS, alone)
    assert other.stdout is not None
    check(json.loads(other.stdout.read()), PAIRS, alone)
    other.stdout.close()
    assert other.wait() == 0


def test_conditions_are_those_of_each_text_alone(weights: Path, cache: str) -> None:
    scoring = Engine(["bleu2"], str(weights), window=3)
    together = scoring.conditions(TEXTS + TEXTS[::-1])
    assert together == together[::-1]
    assert together[: len(TEXTS)] == [scoring.conditions([text])[0] for text in TEXTS]
    assert together == Engine(["sembscore"], str(weights), cache=cache).conditions(TEXTS + TEXTS[::-1])
    assert {len(classes) for classes in together} == {14}
    assert {one for classes in together for one in classes} <= set(range(len(LABELS)))
    assert scoring.conditions([]) == []


def test_conditions_and_sembscore_share_one_reading(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unirg.metrics.chexbert import CheXbert

    scoring = Engine(["sembscore"], str(weights))
    list(scoring.score(PAIRS))
    monkeypatch.setattr(CheXbert, "read", None)
    scoring.conditions([text for pair in PAIRS for text in pair])


def test_another_precision_is_another_identity(weights: Path) -> None:
    names = ["sembscore", "radcliq_v1", "bleu2"]
    fp32, bf16 = (Engine(names, str(weights), Compute(precision=one)).identity for one in ("fp32", "bf16"))
    assert [fp32[name] == bf16[name] for name in names] == [False, False, True]


def test_missing_weights_are_named_with_the_command_that_gets_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unirg weights fetch bertscore"):
        list(Engine(["bertscore"], str(tmp_path)).score([("a", "b")]))


def test_memory_stays_flat_over_a_real_scorer(weights: Path) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    def pairs(count: int) -> Iterator[Pair]:
        return ((_made(12), _made(12)) for _ in range(count))

    compute = Compute(tokens=2048)
    scoring = Engine(["sembscore", "bertscore"], str(weights), compute, window=64, memory=4 << 20)
    for _ in scoring.score(pairs(300)):
        pass
    before = resident()
    for _ in scoring.score(pairs(1300)):
        pass
    # Features of 2,600 texts take 9 MB.
    assert resident() - before < 5 << 20
