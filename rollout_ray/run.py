"""The command line: `rollout` and `python -m rollout_ray.run`. Owns arguments, logging and exit codes, nothing else."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from rollout_ray.errors import ConfigError, RolloutError, VerifyError
from rollout_ray.redaction import shown

if TYPE_CHECKING:
    from rollout_ray.progress import Progress
    from rollout_ray.report import Summary

USAGE = """usage: rollout [--config FILE] [--quiet] [FLAG ...]       draw, score and merge
       rollout prepare gsm8k INPUT.jsonl OUTPUT.parquet   make a question set
       rollout prepare demo COUNT OUTPUT.parquet
       rollout export RUN_DIR OUTPUT.jsonl                hand a finished run on
       rollout verify RUN_DIR_OR_FILE                     recompute keys, seeds, answers and rewards from the file
       rollout rescore RUN_DIR_OR_FILE [--config FILE] [--output FILE] [FLAG ...]   reward again, generate nothing

Each flag below is also a field of the YAML file (under its section) and a variable ROLLOUT_<FLAG>.
Flags beat the environment, the environment beats the file. Yes-or-no flags: --flag or --no-flag.

exit codes: 0 done, 2 bad config, 3 bad data set, 4 no room for the engines, 5 no engine left, 6 run directory,
7 incomplete, 8 verify found a disagreement, 130 stopped (the same command goes on)"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    commands: dict[str, Callable[[list[str]], int]] = {
        "prepare": _prepare, "export": _export, "verify": _verify, "rescore": _rescore, "run": _run,
    }  # fmt: skip
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

    parser = _Parser(prog="rollout", add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    parser.add_argument("--quiet", action="store_true")
    own, flags = parser.parse_known_args(words)
    config = load_config(flags, os.environ, own.config)
    handler = logging.StreamHandler()
    handler.setFormatter(_Shown("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("rollout_ray").setLevel(logging.WARNING if own.quiet else logging.INFO)
    signal.signal(signal.SIGTERM, _as_interrupt)

    from rollout_ray.collect import collect

    console, progress = _view(own.quiet)
    rollouts = collect(None, config, progress=progress)
    _print_summary(console, rollouts.summary, rollouts.path)
    return 0


def _view(quiet: bool) -> tuple[Any, Progress]:
    from rich.console import Console

    from rollout_ray.progress import Live, Plain, Silent

    console = Console()
    if quiet:
        return console, Silent()
    return console, Live(console) if console.is_terminal else Plain()


def _prepare(words: list[str]) -> int:
    from rollout_ray.prepare import prepare_demo, prepare_gsm8k

    parser = _Parser(prog="rollout prepare")
    kinds = parser.add_subparsers(dest="kind", required=True)
    gsm8k = kinds.add_parser("gsm8k", help="GSM8K's JSONL")
    gsm8k.add_argument("input")
    demo = kinds.add_parser("demo", help="generated problems for the demo model")
    demo.add_argument("count", type=int)
    demo.add_argument("--seed", type=int, default=1, help="another seed gives other problems")
    for kind in (gsm8k, demo):
        kind.add_argument("output")
    args = parser.parse_args(words)
    if args.kind == "gsm8k":
        rows = prepare_gsm8k(args.input, args.output)
    else:
        rows = prepare_demo(args.count, args.seed, args.output)
    print(f"{rows} questions in {args.output}")
    return 0


def _export(words: list[str]) -> int:
    parser = _Parser(prog="rollout export")
    parser.add_argument("run_dir")
    parser.add_argument("output")
    args = parser.parse_args(words)

    from rollout_ray.export import export_jsonl
    from rollout_ray.ledger import RunDirectory

    print(f"{export_jsonl(RunDirectory(args.run_dir), args.output)} questions in {args.output}")
    return 0


def _verify(words: list[str]) -> int:
    parser = _Parser(prog="rollout verify")
    parser.add_argument("path", help="run directory, or merged parquet file")
    parser.add_argument("--reward", help="module:function of a custom reward that a file from elsewhere names")
    args = parser.parse_args(words)

    from rollout_ray.verify import verify

    result = verify(args.path, args.reward)
    for line in result.lines():
        print(shown(line))
    if not result.agrees:
        raise VerifyError(
            f"{result.path} disagrees with its own texts and description in {result.counts.total()} places; run "
            "the command of its run again, which merges the parts anew"
        )
    return 0


def _rescore(words: list[str]) -> int:
    parser = _Parser(prog="rollout rescore", allow_abbrev=False, epilog="further flags: the scoring fields of a run")
    parser.add_argument("path", help="run directory, or merged parquet file")
    parser.add_argument("--config", help="YAML file; what it leaves out stays as in the run")
    parser.add_argument("--output", help="new file; unset: merged-<digest>.parquet beside the old one")
    if words and words[0].startswith("-") and not {"-h", "--help"} & set(words):
        parser.error("name the run directory or file before the flags")
    own, flags = parser.parse_known_args(words)

    from rollout_ray.rescore import rescore

    done = rescore(own.path, flags, os.environ, own.config, own.output)
    console, _ = _view(quiet=True)
    lines = [f"{name}: {json.dumps(old)} -> {json.dumps(new)}" for name, (old, new) in done.changed.items()]
    for line in lines or ["no field differs from the run's; graded again"]:
        print(shown(line))
    _print_summary(console, done.summary, done.path)
    return 0


def _print_summary(console: Any, summary: Summary, path: str) -> None:
    from rollout_ray.report import summary_lines, summary_table

    console.print(summary_table(summary))
    for line in [*summary_lines(summary), shown(path)]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


class _Shown(logging.Formatter):
    """Log lines without control characters: a data set's or a model's text may stand in them."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


class _Parser(argparse.ArgumentParser):
    """argparse whose complaints are ConfigErrors."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}; see {self.prog} --help")


def _as_interrupt(signum: int, frame: object) -> NoReturn:
    """SIGTERM (a stopped Ray job, a reclaimed machine) saves and ends like Ctrl-C."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
