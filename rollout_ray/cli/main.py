"""Run one command of `rollout`, log to standard error, and return its exit code.

`rollout` and `python -m rollout_ray.run` both come here. Without a command's name it is a run. The other commands
are in commands.py.
"""

from __future__ import annotations

import difflib
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import TextIO

from rollout_ray.cli.commands import COMMANDS
from rollout_ray.cli.display import print_summary, view
from rollout_ray.cli.output import shielded
from rollout_ray.cli.parser import Parser
from rollout_ray.core.errors import ConfigError, RolloutError, TooManyErrors
from rollout_ray.core.interrupts import stop_by_signals
from rollout_ray.core.redaction import escape_controls, shorten

USAGE = """usage: rollout [--config FILE] [--quiet] [FLAG ...]
       rollout COMMAND ...
       rollout COMMAND --help

Without a command it draws N trajectories a question, scores them, and merges them into one parquet.

commands:
  rollout prepare gsm8k INPUT OUTPUT.parquet          make a question set from GSM8K's JSONL or parquet
  rollout prepare demo COUNT OUTPUT.parquet           make a question set of generated problems
  rollout plan [--on 8xH100] [FLAG ...]               estimate time, memory and money of a run
  rollout show-prompt [--row N] [--arm A] [FLAG ...]  print what the model is sent for one question
  rollout report RUN [OUTPUT.html]                    write a page that shows a run
  rollout verify RUN                                  recompute keys, seeds, answers and rewards from the file
  rollout rescore RUN [--config FILE] [FLAG ...]      grade and reward the stored texts again
  rollout grade GOLD TEXT                             explain the grade of a text
  rollout export RUN OUTPUT [--format FORMAT]         write rows for a trainer
  rollout merge-lora --base DIR --adapter DIR --output DIR   merge a LoRA adapter into its base model
  rollout cluster check CLUSTER.yaml                  check what a cluster can launch now, and its price
  rollout completion bash|zsh|fish                    print shell completion for the shell's start file
RUN is a run directory, or the path of a merged parquet file.

options:
  --config FILE   YAML file of the run; each field stands under its section
  --quiet         show warnings and the path of the result only
  --debug         show the traceback of an error (with any command)
  --version       print the version
  --help          print this text

Every flag below is also a field of the YAML file, and an environment variable ROLLOUT_<FLAG>. Flags beat the
environment, and the environment beats the file. For a yes-or-no field give --flag or --no-flag.

exit codes: 0 done, 1 any other failure, 2 bad config, 3 bad data set, 4 no room for the engines, 5 no engine left,
6 run directory, 7 incomplete, 8 verify found a disagreement, 9 the budget is spent, 10 the cloud refused or cannot be
reached, 11 too many trajectories are errors, 130 stopped. After 9 and 130 the same command goes on."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; without `arguments` take the process's own."""
    if arguments is None:
        sys.stdout = shielded(sys.stdout)
        sys.stderr = shielded(sys.stderr)
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    commands = {**COMMANDS, "run": _run}
    command = commands.get(words[0], _run) if words else _run
    try:
        if words and not words[0].startswith("-") and words[0] not in commands:
            close = difflib.get_close_matches(words[0], commands, 1)
            remedy = f"Did you mean rollout {close[0]}?" if close else "rollout --help lists all commands."
            raise ConfigError(f"'{words[0]}' is not a command. {remedy}")
        return command(words[1:] if words and words[0] in commands else words)
    except RolloutError as error:
        if debug:
            traceback.print_exc()
        print(f"rollout: {escape_controls(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("rollout: stopped before anything was drawn. Run the same command again.", file=sys.stderr)
        return 130
    except Exception as error:  # noqa: BLE001 - the last boundary: nothing goes on after it
        return _unexpected(error, debug)


def _unexpected(error: Exception, debug: bool) -> int:
    """Report an error that nobody foresaw in one line; the traceback goes to a file, or with --debug to the terminal."""
    words = shorten(" ".join(escape_controls(str(error)).split()), 300)
    if debug:
        traceback.print_exc()
        where = "the traceback is above"
    else:
        where = "--debug shows the traceback"
        with suppress(OSError), tempfile.NamedTemporaryFile("w", prefix="rollout-", suffix=".log", delete=False) as log:
            traceback.print_exc(file=log)
            where = f"the traceback is in {log.name}, and --debug shows it"
    print(f"rollout: unexpected {type(error).__name__}: {words}; {where}; please report it", file=sys.stderr)
    return 1


def _run(words: list[str]) -> int:
    """Draw, score and merge; with --help or --version only print."""
    if "--help" in words or "-h" in words:
        from rollout_ray.config.help import help_text

        print(USAGE + "\n" + help_text())
        return 0
    if "--version" in words:
        from rollout_ray import __version__

        print(f"rollout {__version__}")
        return 0
    from rollout_ray.config.loading import load_config

    parser = Parser(prog="rollout", add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    parser.add_argument("--quiet", action="store_true")
    own, flags = parser.parse_known_args(words)
    config = load_config(flags, os.environ, own.config)
    handler = _Stderr()
    handler.setFormatter(_Shown("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("rollout_ray").setLevel(logging.WARNING if own.quiet else logging.INFO)
    stop_by_signals()
    # Ray prints a paragraph for each process that dies, and our warning says the same in a line. Ray reads this at import.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed while executing a task")

    from rollout_ray.api.collect import collect

    console, progress = view(own.quiet)
    rollouts = collect(None, config, progress=progress)
    if own.quiet:
        print(escape_controls(rollouts.path))
    else:
        print_summary(console, rollouts.summary, rollouts.path)
    if rollouts.summary.too_many_errors:
        raise TooManyErrors(
            f"more than half of the trajectories are errors; {rollouts.path} has the reason of each. Correct the data or "
            "the config, and draw into another --output_dir"
        )
    return 0


class _Stderr(logging.StreamHandler[TextIO]):
    """Write to the sys.stderr of the moment: the live view replaces it while it draws."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _Shown(logging.Formatter):
    """Strip control characters from log lines: they may hold text of a data set or a model."""

    def format(self, record: logging.LogRecord) -> str:
        return escape_controls(super().format(record))
