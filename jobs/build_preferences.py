"""Write the preference pairs of one or several runs into one file, for DPO.

    python -m rollout_ray.jobs.build_preferences runs/first runs/second pairs.parquet --pairs 4

This is `rollout export --format dpo` for several runs, one after the other. Runs are not mixed: both trajectories of a
pair answer one question of one run.
"""

from __future__ import annotations

import sys

from rollout_ray.cli.commands import add_choice
from rollout_ray.cli.parser import Parser
from rollout_ray.core.errors import RolloutError
from rollout_ray.core.redaction import escape_controls
from rollout_ray.export.formats import export
from rollout_ray.export.trainer_rows import Choice


def main(words: list[str]) -> int:
    """Write the file and return the exit code."""
    parser = Parser(prog="python -m rollout_ray.jobs.build_preferences")
    parser.add_argument("runs", nargs="+", help="run directories, or merged parquet files")
    parser.add_argument("output", help="file to write: .parquet, .jsonl, .jsonl.gz or .jsonl.zst")
    add_choice(parser)
    try:
        args = parser.parse_args(words)
        done = export(args.runs, args.output, "dpo", Choice(margin=args.margin, pairs=args.pairs))
    except RolloutError as error:
        print(f"build_preferences: {escape_controls(str(error))}", file=sys.stderr)
        return error.exit_code
    print(escape_controls(done.line("dpo", args.output)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
