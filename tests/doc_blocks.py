"""Read the code blocks of README and the documentation pages, and check commands that a test cannot run.

A block's first line may name the file that it stands for: `# arms.yaml`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shlex
import tomllib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from rollout_ray.cli.commands import COMMANDS
from rollout_ray.cli.main import main
from rollout_ray.config.loading import load_config
from tests.conftest import ROOT

DOCS = ROOT / "rollout_ray" / "docs"
PAGES = {
    "README": ROOT / "README.md",
    "cluster": ROOT / "cluster" / "README.md",
    **{page.stem: page for page in sorted(DOCS.glob("*.md"))},
}
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SHELL = re.compile(
    r"export [A-Z_]+=|source \.venv/bin/activate$|git tag v[\d.]+$|mkdir -p ~/\.lambda_cloud && \(umask 077; cat > "
)


@dataclass(frozen=True)
class Block:
    """One code block: `kind` is the word behind its opening fence, `text` ends with a line break."""

    page: str
    number: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}-{self.number}-{self.kind}"

    @property
    def file(self) -> str | None:
        """The file that the block stands for, where its first line names one."""
        found = re.match(r"# ([\w.-]+\.\w+)$", self.text.splitlines()[0])
        return found[1] if found else None

    def commands(self) -> list[str]:
        """The commands of a block of the shell, one an entry."""
        joined = re.sub(r"\\\n\s*", "", self.text)
        return [line for line in joined.splitlines() if line.strip()]

    @property
    def draws(self) -> bool:
        """Whether the block starts engines."""
        if self.kind == "python":
            return "collect(" in self.text or "RolloutPool(" in self.text
        return self.kind == "sh" and any(map(draws, self.commands()))


def blocks() -> list[Block]:
    """All code blocks, in the order of the pages."""
    return [
        Block(page, number, kind, text)
        for page, path in PAGES.items()
        for number, (kind, text) in enumerate(_BLOCK.findall(path.read_text()))
    ]


def words_of(command: str) -> list[str]:
    """The words of a command without its comment and redirections."""
    return [word for word in shlex.split(command, comments=True) if not re.match(r"[12]?>", word)]


def draws(command: str) -> bool:
    """Whether a command starts engines."""
    words = words_of(command)
    if words[:2] == ["python", "-m"]:
        return words[2] == "rollout_ray.jobs.evaluate"
    if words[0] != "rollout" or "--help" in words:
        return False
    return words[1].startswith("-") or (words[1] == "plan" and bool({"--probe", "--from"} & set(words)))


def check(command: str) -> None:
    """Checks a command that is not run. Raises AssertionError where a flag, file, target or module of it is missing, and
    where no check knows such a command."""
    words = words_of(command)
    match words:
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"no target {target}"
        case ["pip", "install", *what] | ["python", "-m", "pip", "wheel", *what]:
            _check_extras(what[-1])
        case ["python", "-m", "pytest", *arguments]:
            assert all((ROOT / word).exists() for word in arguments if "/" in word), command
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module), f"no module {module}"
        case ["ray", *arguments]:
            _check_ray(arguments)
        case ["rollout", name, *arguments] if name in COMMANDS:
            _check_subcommand(name, arguments)
        case ["rollout", *flags]:
            _check_run(flags)
        case _:
            assert _SHELL.match(command), f"no test knows how to check: {command}"


def _check_extras(what: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = re.fullmatch(r"\.(?:\[(\w+)\])?", what)
    assert found and (found[1] is None or found[1] in project["optional-dependencies"]), what


def _check_run(flags: Sequence[str]) -> None:
    load_config(flags)


def _check_subcommand(name: str, arguments: Sequence[str]) -> None:
    said = io.StringIO()
    actions = [word for word in arguments if word == "check"]
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main([name, *actions, "--help"])
    for word in arguments:
        assert not word.startswith("--") or word in said.getvalue(), f"rollout {name} has no {word}"
        assert not word.startswith("cluster/") or (ROOT / word).exists(), word


def _check_ray(arguments: Sequence[str]) -> None:
    """The command, its options and files exist, and so does the command that a job runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray Serve's own fields, which come with it
        from ray.scripts.scripts import cli

    command: click.Command | None = cli
    words = list(arguments)
    while isinstance(command, click.Group):
        command = command.get_command(click.Context(command), words.pop(0))
    assert command is not None, f"ray has no command {' '.join(arguments)}"
    if "--" in words:
        job = words[words.index("--") + 1 :]
        check(shlex.join(job))
        if job[:3] == ["python", "-m", "rollout_ray.run"]:
            _check_run(job[3:])
    command.make_parser(click.Context(command)).parse_args(words)
    assert all((ROOT / word).exists() for word in words if word.startswith("cluster/")), arguments


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    """The anchors of a page."""
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)}
