"""Mistakes that users make on the command line, each with the exact message and exit code; no test of its own.

    python -m tests.mistakes     # makes them all and prints the table

They stand in mistakes.jsonl. Every message is one sentence of cause and one of remedy. FOLDER stands for the folder in
which the command runs.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rollout_ray.cli.main import main
from rollout_ray.core.records import SCHEMA_VERSION
from rollout_ray.data.prepare import prepare_demo


@dataclass(frozen=True)
class Mistake:
    """A command that is wrong. `command` follows `rollout`.

    `needs_ray`: in the test there is a Ray of four CPUs. Without one, a run starts to import vLLM before it looks for
    its model.
    """

    mistake: str
    command: str
    code: int
    message: str
    environment: Mapping[str, str] = field(default_factory=dict)
    needs_ray: bool = False


CASES = Path(__file__).with_suffix(".jsonl")
MISTAKES = [Mistake(**json.loads(line)) for line in CASES.read_text().splitlines()]


def prepare(folder: Path) -> None:
    """What the commands find in their folder."""
    prepare_demo(4, 1, folder / "q.parquet")
    (folder / "text.parquet").write_text("hello")
    (folder / "empty").mkdir()
    (folder / "qa.jsonl").write_text('{"question": "x", "answer": "1"}\n')
    (folder / "twice.jsonl").write_text('{"prompt": "a", "question_id": "x"}\n{"prompt": "b", "question_id": "x"}\n')
    (folder / "broken.yaml").write_text("sampling: [1")
    (folder / "list.yaml").write_text("- sampling\n")
    (folder / "typo.yaml").write_text("sampling: {max_token: 5}\n")
    (folder / "outside.yaml").write_text("max_tokens: 5\n")
    (folder / "twice.yaml").write_text("sampling:\n  seed: 1\ndata: {limit: 3}\nsampling:\n  max_tokens: 5\n")
    (folder / "twins.yaml").write_text("arms: {arm_list: [{name: terse}, {name: terse}]}\n")
    (folder / "secret.yaml").write_text("engine: {extra: {api_key: xyz}}\n")
    used = {"schema_version": SCHEMA_VERSION, "identity": {}}
    (folder / "used" / "parts").mkdir(parents=True)
    (folder / "used" / "parts" / "part-1.parquet").touch()
    (folder / "used" / "run.json").write_text(json.dumps(used))


def make(mistake: Mistake) -> tuple[int, str]:
    """Exit code and message of a mistake that is made in the present folder."""
    os.environ.update(mistake.environment)
    try:
        with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
            code = main(mistake.command.split())
    finally:
        for name in mistake.environment:
            del os.environ[name]
    said = [line for line in errors.getvalue().splitlines() if line.startswith("rollout: ")]
    return code, "\n".join(said).removeprefix("rollout: ").replace(os.getcwd(), "FOLDER")


def show() -> None:
    """Prints the table, each message as it comes."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        prepare(Path())
        for mistake in MISTAKES:
            code, message = make(mistake)
            variables = "".join(f"{key}={value} " for key, value in mistake.environment.items())
            print(f"{mistake.mistake}\n    $ {variables}rollout {mistake.command}\n    {message}  [{code}]")


if __name__ == "__main__":
    show()
