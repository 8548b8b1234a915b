"""The command line: `rollout` and `python -m rollout_ray.run`. Owns a run's arguments, logging and exit codes.

The other commands are in commands.py."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn, TextIO

from rollout_ray.commands import COMMANDS, Parser, print_summary, view
from rollout_ray.errors import RolloutError
from rollout_ray.redaction import shown

USAGE = """usage: rollout [--config FILE] [--quiet] [FLAG ...]       draw, score and merge
       rollout prepare gsm8k INPUT.jsonl OUTPUT.parquet   make a question set
       rollout prepare demo COUNT OUTPUT.parquet
       rollout plan [--on 8xH100] [--from RUN_DIR | --probe [N]] [FLAG ...]   what a run will take, before it is started
       rollout export RUN_DIR OUTPUT.jsonl                hand a finished run on
       rollout verify RUN_DIR_OR_FILE                     recompute keys, seeds, answers and rewards from the file
       rollout rescore RUN_DIR_OR_FILE [--config FILE] [--output FILE] [FLAG ...]   reward again, generate nothing
       rollout cluster check CLUSTER.yaml                 what can be launched now, and what an hour costs

Each flag below is also a field of the YAML file (under its section) and a variable ROLLOUT_<FLAG>.
Flags beat the environment, the environment beats the file. Yes-or-no flags: --flag or --no-flag.

exit codes: 0 done, 2 bad config, 3 bad data set, 4 no room for the engines, 5 no engine left, 6 run directory,
7 incomplete, 8 verify found a disagreement, 9 the budget is spent, 10 the cloud refused, 130 stopped (the same command
goes on after 9 and 130)"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    commands = {**COMMANDS, "run": _run}
    command = commands.get(words[0], _run) if words else _run
    try:
        return command(words[1:] if words and words[0] in commands else words)
    except RolloutError as error:
        print(f"rollout: {shown(str(error))}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `rollout --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("rollout: stopped before anything was drawn", file=sys.stderr)
        return 130


def _run(words: list[str]) -> int:
    if "--help" in words or "-h" in words:
        from rollout_ray.config_sources import help_text

        print(USAGE + "\n" + help_text())
        return 0
    from rollout_ray.config_sources import load_config

    parser = Parser(prog="rollout", add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    parser.add_argument("--quiet", action="store_true")
    own, flags = parser.parse_known_args(words)
    config = load_config(flags, os.environ, own.config)
    handler = _Stderr()
    handler.setFormatter(_Shown("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("rollout_ray").setLevel(logging.WARNING if own.quiet else logging.INFO)
    signal.signal(signal.SIGTERM, _as_interrupt)

    from rollout_ray.collect import collect

    console, progress = view(own.quiet)
    rollouts = collect(None, config, progress=progress)
    print_summary(console, rollouts.summary, rollouts.path)
    return 0


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what sys.stderr is at the time: the live view stands in for it while it is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _Shown(logging.Formatter):
    """Log lines without control characters: a data set's or a model's text may stand in them."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


def _as_interrupt(signum: int, frame: object) -> NoReturn:
    """SIGTERM (a stopped Ray job, a reclaimed machine) saves and ends like Ctrl-C."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
