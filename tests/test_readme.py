"""README and the documentation: every code block is run or checked, and what they name exists."""

from __future__ import annotations

import json
import os
import pkgutil
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from rollout_ray.cli.main import main
from rollout_ray.config.loading import FLAGS, load_config
from rollout_ray.config.schema import RunConfig
from rollout_ray.core.records import PART_SCHEMA, TRAJECTORY
from rollout_ray.data.demo_questions import generate_problems
from rollout_ray.data.prepare import prepare_demo
from rollout_ray.models.paths import model_folder
from tests.conftest import HANG_S, ROOT, clean_environment, demo_rows
from tests.doc_blocks import DOCS, PAGES, Block, anchors, blocks, check, words_of
from tests.finished_runs import finished

README = PAGES["README"].read_text()
BLOCKS = blocks()
# Commands that need GPUs. On a machine without any they end with exit code 4, and say what is missing.
NEED_GPUS = ("--replicas 8", "--tensor_parallel_size 8")
# Commands that a test of their own runs, or that need what no test has (a cloud, a cluster): these are checked, not run.
CHECKED = ("rollout merge-lora", "rollout cluster", "python -m rollout_ray.jobs.submit", "python -m tests.")
# What a command that draws gets from the environment, to be over soon; its flags beat it.
SIMULATED = {
    "ROLLOUT_BACKEND": "simulated",
    "ROLLOUT_SIM_TOKENS_PER_SECOND": "1e6",
    "ROLLOUT_REPLICAS": "1",
    "ROLLOUT_REPORT": "false",
}
RUNS = ("first", "own-arms")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the commands expect to find."""
    folder = tmp_path_factory.mktemp("reader")
    problems = [problem for problem, _ in zip(generate_problems(5, "test"), range(4), strict=False)]
    lines = [json.dumps({"question": p.question, "answer": f"...\n#### {p.answer}"}) for p in problems]
    (folder / "train.jsonl").write_text("\n".join(lines))
    prepare_demo(4, 1, folder / "questions.parquet")
    (folder / "path" / "to").mkdir(parents=True)
    for name in ("model", "70b"):
        (folder / "path" / "to" / name).symlink_to(model_folder("demo"))
    for name in ("jobs", "tests", "cluster"):
        (folder / name).symlink_to(ROOT / name)
    for block in BLOCKS:
        if block.file:
            (folder / block.file).write_text(block.text)
    for name in RUNS:
        finished(folder / "runs" / name, demo_rows(4))
    return folder


@pytest.fixture
def reader(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder of a reader: a copy of `base`."""
    folder = tmp_path / "reader"
    shutil.copytree(base, folder, symlinks=True)
    monkeypatch.chdir(folder)
    on_terminate = signal.getsignal(signal.SIGTERM)  # which the command line sets
    yield folder
    signal.signal(signal.SIGTERM, on_terminate)


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """The exit code of a command of ours, run in this process."""
    words = words_of(command)
    with monkeypatch.context() as patch:
        if words[0] == "rollout":
            try:
                return main(words[1:])
            except SystemExit as ended:  # argparse's --help
                return ended.code
        patch.setattr(sys, "argv", words[2:])
        try:
            runpy.run_module(words[2], run_name="__main__")
        except SystemExit as ended:
            return ended.code
    return 0


def is_run(command: str) -> bool:
    ours = command.startswith(("rollout ", "python -m rollout_ray.jobs."))
    return ours and not command.startswith(CHECKED)


def test_there_is_no_other_kind_of_block() -> None:
    assert {block.kind for block in BLOCKS} == {"sh", "yaml", "python"}


@pytest.mark.parametrize("block", [b for b in BLOCKS if not b.draws], ids=str)
def test_a_block_runs_or_passes_its_check(block: Block, reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if block.kind == "yaml":
        file = reader / "block.yaml"
        file.write_text(block.text)
        load_config([], {}, file)
        return
    if block.kind == "python":
        exec(compile(block.text, str(block), "exec"), {"__name__": str(block)})
        return
    for command in block.commands():
        if inner := re.search(r'"\$\((rollout .*)\)"', command):
            command = inner[1]
        if is_run(command):
            assert run(command, monkeypatch) in (0, None), command
        else:
            check(command)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.draws], ids=str)
def test_a_block_that_draws_runs(
    block: Block, reader: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the simulated engine: the engine is not the point."""
    if block.kind == "python":
        code = block.text.replace("RunConfig(", 'RunConfig(engine={"backend": "simulated"}, resources={"replicas": 1}, ')
        exec(compile(code, str(block), "exec"), {"__name__": str(block)})
        assert "merged.parquet" in capsys.readouterr().out
        return
    for name, value in SIMULATED.items():
        monkeypatch.setenv(name, value)
    if "runs/earlier" in block.text:
        assert main(["--dataset", "questions.parquet", "--output_dir", "runs/earlier", "--quiet"]) == 0
    for command in block.commands():
        if not is_run(command):
            check(command)
            continue
        words = words_of(command)
        target = reader / words[words.index("--output_dir") + 1] if "--output_dir" in words else None
        if target:
            shutil.rmtree(target, ignore_errors=True)
        with monkeypatch.context() as patch:
            code, said = 0, ""
            if needs_gpus := any(flag in command for flag in NEED_GPUS):
                patch.setenv("ROLLOUT_BACKEND", "vllm")
                code = 4
            assert run(command, patch) == code, command
            said = capsys.readouterr().err
        if needs_gpus:
            assert "lower --replicas" in said or "set it to 1 to run on the CPU" in said
        elif target:
            assert (target / "merged.parquet").exists()


def test_make_demo(checkout: Path, programs: None) -> None:
    """With vLLM, in a clone whose environment is already there, as on a second call."""
    clone = checkout
    if not (clone / ".venv").exists():
        (clone / ".venv").symlink_to(Path(sys.executable).parent.parent)
    for name in (".ready", ".test-ready"):
        stamp = clone / ".venv" / name
        if not stamp.exists():
            stamp.touch()
        os.utime(stamp)
    done = subprocess.run(
        ["make", "demo"], cwd=clone, env=clean_environment(), capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "100 questions, 800 trajectories" in done.stdout
    assert ".demo/run/merged.parquet" in done.stdout
    arms = [f"{kind}_{i}" for kind in ("wolfram", "maudlin") for i in range(4)]
    assert all(re.search(rf"{arm} .* 100 .*%", done.stdout) for arm in arms)


def test_make_test_runs_checks_and_tests(programs: None) -> None:
    planned = subprocess.run(
        ["make", "-n", "test"], cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=True
    ).stdout
    for step in ("ruff check .", "ruff format --check .", "mypy", "-m pytest"):
        assert step in planned


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    path = PAGES[page]
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), f"{page} links {target}"
        assert not anchor or anchor in anchors(linked), f"{page} links {target}"


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page: str) -> None:
    """Files, modules and flags in code spans."""
    for span in re.findall(r"`([^`\n]+)`", PAGES[page].read_text()):
        if re.fullmatch(r"(rollout_ray|actors|jobs|cluster|tests)/[\w./-]+", span):
            assert (ROOT / span).exists(), f"{page} names {span}"
        for module in re.findall(r"\brollout_ray(?:\.\w+)+", span):
            assert pkgutil.resolve_name(module), f"{page} names {span}"
        for flag in re.findall(r"--(\w+)", span):
            assert "_" not in flag or flag.removeprefix("no_") in FLAGS, f"{page} names {span}"


def test_every_column_is_explained() -> None:
    for name in [field.name for field in TRAJECTORY] + PART_SCHEMA.names:
        assert f"`{name}`" in README, name
    assert "`--flush_seconds`" in README and RunConfig().output.flush_seconds == 5.0


def test_the_readme_is_short_and_links_every_page() -> None:
    assert len(README.splitlines()) <= 200
    assert {page.name for page in DOCS.glob("*.md")} == set(re.findall(r"rollout_ray/docs/([\w-]+\.md)", README))


def test_the_architecture_lists_the_packages_in_the_order_of_their_layers() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    layers = [[name.strip() for name in re.split(r"[|:]", layer)] for layer in contract["layers"]]
    table = PAGES["architecture"].read_text().partition("## Packages")[2].partition("\n## ")[0]
    listed = iter(Path(name).stem for name in re.findall(r"^\| `([\w/.]+)` \|", table, re.MULTILINE))
    for layer in layers:
        assert {name for _, name in zip(layer, listed, strict=False)} == set(layer)
    assert not list(listed)
