"""Define the subcommands of `rollout`: each takes its words and returns its exit code.

main.py chooses the command. A command imports what it needs when it runs, so that `--help` stays fast.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import get_args

from rollout_ray.cli.display import print_summary, view
from rollout_ray.cli.parser import Parser
from rollout_ray.core.errors import VerifyError
from rollout_ray.core.redaction import escape_controls


def prepare(words: list[str]) -> int:
    """Make a question set."""
    from rollout_ray.data.prepare import prepare_demo, prepare_gsm8k

    parser = Parser(prog="rollout prepare", description="Make a question set as a parquet file.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    gsm8k = kinds.add_parser("gsm8k", help="from GSM8K's JSONL or parquet")
    gsm8k.add_argument("input", help="JSONL or parquet with the fields question and answer")
    demo = kinds.add_parser("demo", help="generated word problems for the demo model")
    demo.add_argument("count", type=int, help="number of problems")
    demo.add_argument("--seed", type=int, default=1, help="another seed gives other problems (default: %(default)s)")
    for kind in (gsm8k, demo):
        kind.add_argument("output", help="new parquet file")
    args = parser.parse_args(words)
    if args.kind == "gsm8k":
        rows = prepare_gsm8k(args.input, args.output)
    else:
        rows = prepare_demo(args.count, args.seed, args.output)
    print(f"{rows} questions in {args.output}")
    return 0


def export(words: list[str]) -> int:
    """Write the rows of a finished run for a trainer."""
    from rollout_ray.export.formats import FORMATS, Columns, Source, export
    from rollout_ray.export.trainer_rows import Choice

    parser = Parser(prog="rollout export", description="Write the rows of a finished run for a trainer.")
    parser.add_argument("path", help="run directory, or merged parquet file")
    parser.add_argument("output", help="file to write: .parquet, .jsonl, .jsonl.gz or .jsonl.zst")
    parser.add_argument("--format", choices=FORMATS, default="jsonl", help="rows to write (default: %(default)s)")
    add_choice(parser)
    parser.add_argument(
        "--best", type=int, default=Choice.best, help="sft: examples of a question, the best first (default: %(default)s)"
    )
    parser.add_argument(
        "--columns",
        choices=get_args(Columns),
        default="record",
        help="jsonl: record has question, gold answer and the main fields of trajectories; all has every column, ids, arms "
        "and statuses too (default: %(default)s)",
    )
    parser.add_argument("--run", help="run directory, for a merged file that another program such as pandas wrote")
    args = parser.parse_args(words)
    choice, source = Choice(args.margin, args.pairs, args.best), Source(args.columns, args.run)
    done = export([args.path], args.output, args.format, choice, source)
    print(escape_controls(done.line(args.format, args.output)))
    return 0


def _run_parser(prog: str, description: str) -> Parser:
    """Return the parser of a command that takes the config of a run, too."""
    epilog = "Further flags are those of a run; see rollout --help."
    parser = Parser(prog=prog, description=description, allow_abbrev=False, epilog=epilog)
    parser.add_argument("--config", help="YAML file of the run")
    return parser


def plan(words: list[str]) -> int:
    """Print what a run will take, with warnings."""
    parser = _run_parser("rollout plan", "Estimate what a run takes, before it starts.")
    parser.add_argument("--on", metavar="GPUS", help="GPUs to plan for, such as 8xH100 or 2x8xH100. Unset: this machine's")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--from", dest="earlier", metavar="RUN_DIR", help="a finished run to take speed and lengths from")
    source.add_argument(
        "--probe",
        type=int,
        nargs="?",
        const=0,
        metavar="N",
        help="run N questions first, and throw them away. Without N: what fills the engines, at most a tenth of the run",
    )
    own, flags = parser.parse_known_args(words)

    from rollout_ray.api.plan import make_plan
    from rollout_ray.config.loading import load_config

    _, progress = view(quiet=False)
    made = make_plan(load_config(flags, os.environ, own.config), own.on, own.earlier, own.probe, progress)
    for line in made.lines():
        print(escape_controls(line))
    for warning in made.warnings():
        print(f"warning: {escape_controls(warning)}")
    return 0


def show_prompt(words: list[str]) -> int:
    """Print the prompt of one question."""
    parser = _run_parser("rollout show-prompt", "Print the prompt of one question, as text and as tokens.")
    parser.add_argument("--row", type=int, default=0, metavar="N", help="number of the question, from 0 (default: 0)")
    parser.add_argument("--arm", metavar="NAME", help="the only arm to show. Unset: one of each prompt variant")
    own, flags = parser.parse_known_args(words)

    from rollout_ray.api.show_prompt import show_prompt
    from rollout_ray.config.loading import load_config

    for line in show_prompt(load_config(flags, os.environ, own.config), None, own.row, own.arm):
        print(escape_controls(line))
    return 0


def add_choice(parser: Parser) -> None:
    """Add the arguments about preference pairs."""
    from rollout_ray.export.trainer_rows import Choice

    parser.add_argument(
        "--margin",
        type=float,
        default=Choice.margin,
        help="dpo: least difference in reward of two correct ones (default: %(default)s)",
    )
    parser.add_argument(
        "--pairs", type=int, default=Choice.pairs, help="dpo: most pairs of a question (default: %(default)s)"
    )


def verify(words: list[str]) -> int:
    """Recompute a merged file. Raise VerifyError where it disagrees with its texts."""
    parser = Parser(prog="rollout verify", description="Recompute a merged file's values from its texts.")
    parser.add_argument("path", help="run directory, or merged parquet file")
    parser.add_argument("--reward", help="module:function, or several as a,b, to recompute rewards with. Unset: the run's")
    args = parser.parse_args(words)

    from rollout_ray.results.verify import verify

    result = verify(args.path, args.reward)
    for line in result.lines():
        print(escape_controls(line))
    if not result.agrees:
        raise VerifyError(
            f"{result.path} disagrees with its own texts and description in {result.counts.total()} places. Run the "
            "command of its run again: it merges the parts anew."
        )
    return 0


def rescore(words: list[str]) -> int:
    """Grade and reward the stored texts again, and write a new merged file."""
    parser = Parser(
        prog="rollout rescore",
        description="Grade and reward the stored texts again, and generate nothing.",
        allow_abbrev=False,
        epilog="Further flags are the fields of the section scoring; see rollout --help.",
    )
    parser.add_argument("path", help="run directory, or merged parquet file")
    parser.add_argument("--config", help="YAML file. A field that it leaves out stays as in the run")
    parser.add_argument("--output", help="new file. Unset: merged-<digest>.parquet beside the old one")
    if words and words[0].startswith("-") and not {"-h", "--help"} & set(words):
        parser.error("name the run directory or file before the flags")
    own, flags = parser.parse_known_args(words)

    from rollout_ray.report.html import write_report
    from rollout_ray.results.rescore import rescore

    done = rescore(own.path, flags, os.environ, own.config, own.output)
    page = write_report(done.path)
    console, _ = view(quiet=True)
    lines = [f"{name}: {json.dumps(old)} -> {json.dumps(new)}" for name, (old, new) in done.changed.items()]
    for line in lines or ["no field differs from the run's. The texts were graded again."]:
        print(escape_controls(line))
    print(f"{done.verdicts_changed:,} verdicts changed")
    for line in done.examples:
        print(escape_controls(f"  {line}"))
    print(escape_controls(f"report: {page.path}"))
    print_summary(console, done.summary, done.path)
    return 0


def grade(words: list[str]) -> int:
    """Print which text was taken for the answer, both normal forms, the rule that decided, and the time."""
    parser = Parser(prog="rollout grade", description="Explain the grade of a text against a gold answer.")
    parser.add_argument("gold", help="gold answer, as it stands in the input")
    parser.add_argument("text", help="text of a model")
    args = parser.parse_args(words)

    from rollout_ray.scoring.grader import Grader

    with Grader() as grader:
        for line in grader.explain(args.gold, args.text).lines():
            print(escape_controls(line))
    return 0


def report(words: list[str]) -> int:
    """Write the page of a finished run."""
    parser = Parser(prog="rollout report", description="Write a page that shows a finished run.")
    parser.add_argument("path", help="run directory, or merged parquet file")
    parser.add_argument("output", nargs="?", help="new page. Unset: report.html beside the merged file")
    parser.add_argument("--run", help="run directory, for a merged file that another program such as pandas wrote")
    args = parser.parse_args(words)

    from rollout_ray.report.html import write_report

    done = write_report(args.path, args.output, described_by=args.run)
    print(
        escape_controls(
            f"{done.path}: {done.shown} of {done.questions} questions, {done.size / 1e6:.1f} MB, {done.seconds:.1f} s"
        )
    )
    return 0


def completion(words: list[str]) -> int:
    """Print shell completion."""
    from rollout_ray.cli.completion import SHELLS, script

    parser = Parser(prog="rollout completion", description="Print shell completion for the shell's start file.")
    parser.add_argument("shell", choices=SHELLS)
    print(script(parser.parse_args(words).shell, COMMANDS))
    return 0


def merge_lora(words: list[str]) -> int:
    """Merge a LoRA adapter into its base model."""
    parser = Parser(prog="rollout merge-lora", description="Merge a LoRA adapter into its base model.")
    parser.add_argument("--base", required=True, help="folder of the base model")
    parser.add_argument("--adapter", required=True, help="folder of the adapter, as written by peft's save_pretrained")
    parser.add_argument("--output", required=True, help="new folder for the merged bf16 model and its tokenizer")
    args = parser.parse_args(words)

    from rollout_ray.storage.paths import local_path

    adapter, output = (local_path(path, "merge-lora") for path in (args.adapter, args.output))

    from rollout_ray.lora.merge import merge_lora
    from rollout_ray.models.paths import model_folder

    merge_lora(model_folder(args.base), adapter, output, lambda text: print(escape_controls(text), flush=True))
    return 0


def cluster(words: list[str]) -> int:
    """Check a cluster's YAML."""
    parser = Parser(prog="rollout cluster", description="Compare a cluster's YAML with what can be launched now.")
    actions = parser.add_subparsers(dest="action", required=True)
    check = actions.add_parser("check", help="launch nothing, and print what an hour would cost")
    check.add_argument("file", help="cluster YAML")
    args = parser.parse_args(words)

    from rollout_ray.cluster.check import check_file
    from rollout_ray.core.user_paths import expand_home

    for line in check_file(expand_home(args.file)):
        print(escape_controls(line))
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "prepare": prepare,
    "plan": plan,
    "show-prompt": show_prompt,
    "export": export,
    "verify": verify,
    "rescore": rescore,
    "grade": grade,
    "cluster": cluster,
    "completion": completion,
    "merge-lora": merge_lora,
    "report": report,
}
