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
from pathlib import Path

import pytest

from tests.faults.scoring_world import STUDIES, Happened, World
from tests.scoring import clients
from tests.scoring.clients import (
    COME_AGAIN,
    CONCURRENCY,
    SEGMENT,
    Client,
    assert_no_duplicate_and_nothing_partial,
    dying,
    scored,
)
from tests.scoring.stub_server import Behaviour, Served, served

KILLS = int(os.environ.get("UNIRG_SOAK_KILLS", "200"))
SEED = int(os.environ.get("UNIRG_SOAK_SEED", "0"))
LIVES = 12
"""Of a client on one store; the one after them is let live."""
MOMENTS: dict[str, tuple[str, ...]] = {
    "a segment's link": ("os.link",),
    "a segment's removal aside": ("os.remove",),
    "a rename": ("os.rename",),
    "any operation on a file": (),
}


def killed(scoring: World, stub: Served, store: Path, chance: random.Random, server_too: bool) -> str:
    """Let a client live until it dies of something, or ends; of what."""
    moment = chance.choice(["time", "time", *MOMENTS])
    number = chance.randint(1, 4 if MOMENTS.get(moment) else 150)
    before = None if moment == "time" else dying(store, number, *MOMENTS[moment])
    one = Client(scoring.archive, stub.url, str(store), before=before)
    began, ends = time.monotonic(), chance.uniform(0.05, 1.2)
    server_ends = chance.uniform(0.05, 1.2) if server_too and chance.random() < 0.5 else ends
    if server_ends < ends:
        time.sleep(server_ends)
        stub.kill()
    if moment == "time":
        time.sleep(max(0.0, began + ends - time.monotonic()))
        one.kill()
    if server_ends > ends:
        time.sleep(max(0.0, began + server_ends - time.monotonic()))
        stub.kill()
    code = one.wait()
    assert_no_duplicate_and_nothing_partial(str(store))
    if code == -signal.SIGKILL:
        return "at some time" if moment == "time" else f"before {moment}"
    if code == COME_AGAIN and server_ends != ends:  # it came when there was no server
        assert "does not answer" in one.said, one.said
        return "no server"
    assert code == 0, one.said
    return "ended"


@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("kills", "server_too"),
    [
        (6, False),
        (4, True),
        pytest.param(KILLS, False, marks=pytest.mark.soak),
        pytest.param(KILLS // 2, True, marks=pytest.mark.soak),
    ],
)
def test_killed_at_random_moments_a_client_leaves_whole_segments_and_goes_on(
    kills: int,
    server_too: bool,
    scoring: World,
    tmp_path: Path,
    happened: Happened,
) -> None:
    chance = random.Random(f"{SEED}/{server_too}")
    moments: Counter[str] = Counter()
    archives, repeated, servers = 0, 0, 0
    behaviour = Behaviour(latency_s=0.02, jitter_s=0.02, seed=SEED)
    with served(behaviour, tmp_path / "log", restart_s=0.05) as stub:
        while moments.total() < kills:
            store = tmp_path / f"store-{archives}"
            asked, starts, lives = len(stub.asked()), stub.starts(), 0
            while lives < LIVES and moments.total() < kills:
                moment = killed(scoring, stub, store, chance, server_too)
                if moment == "ended":  # before it was to die
                    break
                if moment != "no server":
                    lives += 1
                    moments[moment] += 1
            made = scored(scoring.archive, stub.url, str(store))
            assert assert_no_duplicate_and_nothing_partial(str(store)) == STUDIES
            assert clients.digest(made) == scoring.digest
            clients.assert_complete(made, STUDIES)
            again, deaths = len(stub.asked()) - asked - STUDIES, stub.starts() - starts
            # Of each killed client, what was in flight and what no segment held yet; of each killed server,
            # what was in flight, once more for all and alone for each.
            assert again <= lives * (CONCURRENCY + SEGMENT) + deaths * 2 * CONCURRENCY
            archives, repeated, servers = archives + 1, repeated + again, servers + deaths
    assert (servers > 0) == server_too
    assert repeated > 0
    told = moments | {"archives": archives, "studies asked again": repeated, "kills of the server": servers}
    happened(f"kill -9 of the client{' and of the server' if server_too else ''}", told)


@pytest.mark.parametrize("event", ["os.rename", "os.rmdir", pytest.param("", marks=pytest.mark.soak)])
def test_killed_at_every_step_from_the_last_answer_to_the_artifact_nothing_is_lost(
    event: str,
    scoring: World,
    tmp_path: Path,
    happened: Happened,
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
    happened(
        "kill -9 between the last answer and the artifact", {f"steps of {event or 'any kind'}": steps - 1}
    )
