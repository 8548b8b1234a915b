"""The command line: `rollout` and `python -m rollout_ray.run`. Owns a run's arguments, logging and exit codes.

The other commands are in commands.py."""

from __future__ import annotations

import difflib
import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import NoReturn, TextIO

from rollout_ray.cli.commands import COMMANDS, Parser, print_summary, view
from rollout_ray.core.errors import ConfigError, RolloutError
from rollout_ray.core.redaction import escape_controls, shorten

USAGE = """usage: rollout [--config FILE] [--quiet] [FLAG ...]       draw, score and merge
       rollout COMMAND --help
       rollout prepare gsm8k INPUT.jsonl OUTPUT.parquet   make a question set
       rollout prepare demo COUNT OUTPUT.parquet
       rollout plan [--on 8xH100] [--from RUN_DIR | --probe [N]] [FLAG ...]   what a run will take, before it is started
       rollout export RUN_DIR_OR_FILE OUTPUT [--format jsonl|responses|trajectories|dpo|sft|grpo]   hand a run on
       rollout verify RUN_DIR_OR_FILE                     recompute keys, seeds, answers and rewards from the file
       rollout report RUN_DIR_OR_FILE [OUTPUT.html]       a page to look at the rollouts with
       rollout rescore RUN_DIR_OR_FILE [--config FILE] [--output FILE] [FLAG ...]   reward again, generate nothing
       rollout cluster check CLUSTER.yaml                 what can be launched now, and what an hour costs
       rollout merge-lora --base FOLDER --adapter FOLDER --output FOLDER   base model + adapter -> one bf16 model
       rollout completion bash|zsh|fish                   completion of commands and flags, for the shell's start file

Each flag below is also a field of the YAML file (under its section) and a variable ROLLOUT_<FLAG>.
Flags beat the environment, the environment beats the file. Yes-or-no flags: --flag or --no-flag. --debug, with any
command, shows the traceback of an error.

exit codes: 0 done, 1 any other failure, 2 bad config, 3 bad data set, 4 no room for the engines, 5 no engine left,
6 run directory, 7 incomplete, 8 verify found a disagreement, 9 the budget is spent, 10 the cloud refused or cannot be
reached, 130 stopped (the same command goes on after 9 and 130)"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    commands = {**COMMANDS, "run": _run}
    command = commands.get(words[0], _run) if words else _run
    try:
        if words and not words[0].startswith("-") and words[0] not in commands:
            close = difflib.get_close_matches(words[0], commands, 1)
            remedy = f"did you mean rollout {close[0]}?" if close else "rollout --help lists all"
            raise ConfigError(f"'{words[0]}' is no command; {remedy}")
        return command(words[1:] if words and words[0] in commands else words)
    except RolloutError as error:
        if debug:
            traceback.print_exc()
        print(f"rollout: {escape_controls(str(error))}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `rollout --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("rollout: stopped before anything was drawn; the same command begins again", file=sys.stderr)
        return 130
    except Exception as error:  # noqa: BLE001 - the last boundary: nothing goes on after it
        return _unexpected(error, debug)


def _unexpected(error: Exception, debug: bool) -> int:
    """One line for what nobody foresaw; the traceback goes to a file, or with --debug to the terminal."""
    words = shorten(" ".join(escape_controls(str(error)).split()), 300)
    if debug:
        traceback.print_exc()
        where = "the traceback is above"
    else:
        with tempfile.NamedTemporaryFile("w", prefix="rollout-", suffix=".log", delete=False) as log:
            traceback.print_exc(file=log)
        where = f"the traceback is in {log.name}, and --debug shows it"
    print(f"rollout: unexpected {type(error).__name__}: {words}; {where}; please report it", file=sys.stderr)
    return 1


def _run(words: list[str]) -> int:
    if "--help" in words or "-h" in words:
        from rollout_ray.config.help import help_text

        print(USAGE + "\n" + help_text())
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
    signal.signal(signal.SIGTERM, _as_interrupt)
    # Ray prints a paragraph for each process that dies; our own warning says the same in a line. Read when Ray is loaded.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed while executing a task")

    from rollout_ray.api.collect import collect

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
        return escape_controls(super().format(record))


def _as_interrupt(signum: int, frame: object) -> NoReturn:
    """SIGTERM (a stopped Ray job, a reclaimed machine) saves and ends like Ctrl-C."""
    raise KeyboardInterrupt
