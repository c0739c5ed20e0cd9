"""`python -m unirg.training ALGORITHM ...`: one process of a training, alone or one of torchrun's.

Every process runs the same verb; rank 0 prints the artifact's URI. Exit codes: 0 done; 2 the user's mistake
(starting again would not help); 75 after SIGTERM with a checkpoint saved (start it again); 130 interrupted; 1
anything else, of which a store or a judge that is away passes by itself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from unirg import telemetry
from unirg.errors import Unavailable, UserError
from unirg.training import distributed, train


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m unirg.training", description=__doc__.splitlines()[0])
    parser.add_argument("algorithm", help="sft or grpo")
    parser.add_argument("--config", help="a recipe or YAML file; none = the defaults")
    parser.add_argument("--set", action="append", default=[], help="key=value over the configuration")
    parser.add_argument("--cohort", required=True, help="URI of the cohort")
    parser.add_argument("--parent", required=True, help="URI of the checkpoint to start from")
    parser.add_argument("--weights", default="", help="URI of the scorers' weights")
    parser.add_argument("--judge-url", default="", help="endpoint that counts errors")
    parser.add_argument("--store", required=True, help="where artifacts lie")
    given = parser.parse_args(argv)
    where = (given.cohort, given.parent, given.store, given.judge_url, given.weights)
    try:
        made = train(given.algorithm, given.config, given.set, *where)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        shown = telemetry.safe_error(error)
        print(f"unirg: {shown}", file=sys.stderr, flush=True)
        return 2 if isinstance(shown, UserError) and not isinstance(shown, Unavailable) else 1
    if distributed.rank() == 0:
        print(made.uri, flush=True)
    distributed.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
