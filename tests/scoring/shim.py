"""TEMPORARY: `unirg score --archive ... --endpoint ...` until the command line has it."""

from __future__ import annotations

import argparse
import contextlib
import sys


class There:
    def __init__(self, url: str, name: str) -> None:
        self.url, self.model_name, self.model_digest = url, name, "d" * 64
        self.restarts = False

    def connect(self):  # type: ignore[no-untyped-def]
        return contextlib.nullcontext(self.url)


def run(command: list[str]) -> None:
    from unirg import cli, config, telemetry
    from unirg.artifact import open_artifact
    from unirg.errors import Unavailable, UserError
    from unirg.scoring.archive import ScoreConfig, score, score_part

    parser = argparse.ArgumentParser()
    parser.add_argument("verb")
    for name in ("--archive", "--endpoint", "--model", "--output", "--part"):
        parser.add_argument(name, default="")
    parser.add_argument("settings", nargs="*")
    asked = parser.parse_intermixed_args(command)
    try:
        settings = config.load(ScoreConfig, None, asked.settings)
        archive, there = open_artifact(asked.archive, "cohort"), There(asked.endpoint, asked.model)
        if asked.part:
            which, of = map(int, asked.part.split("/"))
            print(score_part(settings, archive, there, asked.output, (which, of)))
        else:
            cli._done(score(settings, archive, there, asked.output))
    except Exception as error:
        import os

        if os.environ.get("TRACE"):
            import traceback

            traceback.print_exc()
        shown = telemetry.safe_error(error)
        print(f"unirg: {shown}", file=sys.stderr)
        sys.exit(2 if isinstance(shown, UserError) and not isinstance(shown, Unavailable) else 1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    run(sys.argv[1:])
