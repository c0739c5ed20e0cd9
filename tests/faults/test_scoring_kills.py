"""kill -9 of a client at any moment, of the server too: never a row twice, never a part of a file, and in
the end the same predictions.

`make soak` kills 200 times at random; UNIRG_SOAK_KILLS and UNIRG_SOAK_SEED make other ones.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.scoring_world import STUDIES, World
from tests.scoring import clients
from tests.scoring.clients import SEGMENT, Client, assert_no_duplicate_and_nothing_partial, dying, scored
from tests.scoring.stub_server import Behaviour, served

KILLS = int(os.environ.get("UNIRG_SOAK_KILLS", "200"))
SEED = int(os.environ.get("UNIRG_SOAK_SEED", "0"))
LIVES = 12
"""Of a client on one store; the one after them is let live."""
CONCURRENCY = 8
MOMENTS: dict[str, tuple[str, ...]] = {
    "a segment's link": ("os.link",),
    "a segment's removal aside": ("os.remove",),
    "a rename": ("os.rename",),
    "any operation on a file": (),
}


def begun(scoring: World, url: str, store: Path, chance: random.Random) -> tuple[Client, str]:
    """A client that will die, and of what."""
    moment = chance.choice(["time", "time", *MOMENTS])
    if moment == "time":
        one = Client(scoring.archive, url, str(store))
        time.sleep(chance.uniform(0.05, 1.2))
        one.kill()
        return one, "at some time"
    number = chance.randint(1, 4 if MOMENTS[moment] else 150)
    one = Client(scoring.archive, url, str(store), before=dying(store, number, *MOMENTS[moment]))
    one.wait()
    return one, f"before {moment}"


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("kills", "server_too"),
    [
        (10, False),
        (6, True),
        pytest.param(KILLS, False, marks=pytest.mark.soak),
        pytest.param(KILLS // 2, True, marks=pytest.mark.soak),
    ],
)
def test_killed_at_random_moments_a_client_leaves_whole_segments_and_goes_on(
    kills: int,
    server_too: bool,
    scoring: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chance = random.Random(f"{SEED}/{server_too}")
    moments: Counter[str] = Counter()
    repeated = []
    with served(
        Behaviour(latency_s=0.02, jitter_s=0.02, seed=SEED), tmp_path / "log", restart_s=0.05
    ) as stub:
        while moments.total() < kills:
            store = tmp_path / f"store-{len(repeated)}"
            before, lives = len(stub.asked()), 0
            while lives < LIVES and moments.total() < kills:
                one, moment = begun(scoring, stub.url, store, chance)
                if server_too and chance.random() < 0.5:
                    with suppress(OSError):
                        stub.kill()
                assert_no_duplicate_and_nothing_partial(str(store))
                if one.process.exitcode != -signal.SIGKILL:
                    assert one.wait() == 0, one.said
                    break  # it came to its end before it was to die
                lives += 1
                moments[moment] += 1
            made = scored(scoring.archive, stub.url, str(store))
            assert assert_no_duplicate_and_nothing_partial(str(store)) == STUDIES
            assert clients.digest(made) == scoring.digest
            clients.assert_complete(made, STUDIES)
            again = len(stub.asked()) - before - STUDIES
            # Of each killed client, what was in flight and what no segment held yet.
            assert again <= lives * (CONCURRENCY + SEGMENT) + (
                0 if not server_too else (lives + 1) * CONCURRENCY * 2
            )
            repeated.append(again)
    with capsys.disabled():
        print(
            f"\n{moments.total()} kills: {dict(moments)}; asked again in {len(repeated)} archives: {repeated}"
        )


@pytest.mark.parametrize("event", ["os.link", "os.rename", pytest.param("", marks=pytest.mark.soak)])
def test_killed_at_every_step_from_the_last_answer_to_the_artifact_nothing_is_lost(
    event: str,
    scoring: World,
    tmp_path: Path,
) -> None:
    """The clients of both parts have asked for everything; then one that commits dies at its first step, its
    second, and so on, until one gets through."""
    store, steps = tmp_path / "store", 0
    with served(Behaviour(latency_s=0.01), tmp_path / "log") as stub:
        worker = Client(scoring.archive, stub.url, str(store), part="0/1")
        assert worker.wait() == 0, worker.said
        asked = len(stub.asked())
        while True:
            steps += 1
            one = Client(
                scoring.archive, stub.url, str(store), before=dying(store, steps, *([event] if event else []))
            )
            code = one.wait()
            assert assert_no_duplicate_and_nothing_partial(str(store)) == STUDIES
            if code == 0:
                break
            assert code == -signal.SIGKILL, one.said
        (made,) = clients.committed(str(store))
        again = scored(scoring.archive, stub.url, str(store))
        assert len(stub.asked()) == asked
    assert again.digest == made.digest
    assert clients.digest(made) == scoring.digest
    assert list(store.glob(".work/*/")) == []
    assert steps > 1 or event == "os.link"
