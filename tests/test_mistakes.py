"""What the command line says: each user's mistake in one exact sentence, unexpected errors, help and completion."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rollout_ray.cli.commands import COMMANDS
from rollout_ray.cli.main import USAGE, main
from rollout_ray.config.loading import FLAGS
from rollout_ray.core.errors import RolloutError
from rollout_ray.data.prepare import prepare_demo
from rollout_ray.export.formats import FORMATS
from tests.conftest import HANG_S, ROOT, Command, clean_environment
from tests.mistakes import MISTAKES, Mistake, make, prepare


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("mistakes")
    prepare(made)
    return made


@pytest.fixture
def no_engine_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with vLLM starts importing it before it reads the data set; a mistake needs no engine."""
    monkeypatch.setenv("ROLLOUT_BACKEND", "simulated")


def check(mistake: Mistake, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert make(mistake) == (mistake.code, mistake.message)
    assert mistake.code in documented_codes() and re.search(r"[;,.]| in ", mistake.message)


def name_of(mistake: Mistake) -> str:
    return mistake.mistake


@pytest.mark.parametrize("mistake", [m for m in MISTAKES if not m.needs_ray], ids=name_of)
def test_a_mistake_is_a_sentence_of_cause_and_one_of_remedy(
    mistake: Mistake, folder: Path, monkeypatch: pytest.MonkeyPatch, no_engine_ahead: None
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # as in a process of its own
    check(mistake, folder, monkeypatch)


@pytest.mark.parametrize("mistake", [m for m in MISTAKES if m.needs_ray], ids=name_of)
def test_what_only_ray_can_tell_is_such_a_sentence_too(
    mistake: Mistake, folder: Path, monkeypatch: pytest.MonkeyPatch, local_ray: None
) -> None:
    check(mistake, folder, monkeypatch)


def documented_codes() -> set[int]:
    text = USAGE.partition("exit codes:")[2]
    return {int(number) for number in re.findall(r"(\d+) [a-z]", text)}


def test_there_are_enough_of_them_and_every_exit_code_is_documented() -> None:
    def codes(kind: type[RolloutError]) -> set[int]:
        return {kind.exit_code}.union(*(codes(child) for child in kind.__subclasses__()))

    assert len(MISTAKES) >= 25 and len({mistake.message for mistake in MISTAKES}) == len(MISTAKES)
    assert documented_codes() == codes(RolloutError) | {0}
    readme = " ".join((ROOT / "README.md").read_text().partition("Exit codes:")[2].split())
    assert {int(number) for number in re.findall(r"(\d+) [a-z]", readme.partition(". ")[0])} == documented_codes()


def test_debug_shows_the_traceback_and_nothing_else_does(capsys: pytest.CaptureFixture[str], no_engine_ahead: None) -> None:
    assert main(["--dataset", "nowhere.parquet"]) == 3
    assert "Traceback" not in capsys.readouterr().err
    assert main(["--debug", "--dataset", "nowhere.parquet"]) == 3
    shown = capsys.readouterr().err
    assert "Traceback" in shown and shown.splitlines()[-1].startswith("rollout: nowhere.parquet does not exist")


def test_what_nobody_foresaw_ends_in_one_line_that_names_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_in_a_way_of_its_own(*_: object, **__: object) -> None:
        raise LookupError("no such thing")

    monkeypatch.setattr(importlib.import_module("rollout_ray.api.collect"), "collect", fails_in_a_way_of_its_own)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "q.jsonl").write_text('{"prompt": "a"}\n')
    words = ["--dataset", str(tmp_path / "q.jsonl"), "--output_dir", str(tmp_path / "run")]
    assert main(words) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("rollout: "))
    log = re.fullmatch(r"rollout: unexpected LookupError: no such thing; the traceback is in (\S+), and --debug .*", line)
    assert log and "fails_in_a_way_of_its_own" in Path(log[1]).read_text()
    assert main([*words, "--debug"]) == 1
    assert "fails_in_a_way_of_its_own" in capsys.readouterr().err


# Help and completion


@pytest.mark.parametrize("command", [*COMMANDS, "run", ""])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [command, "--help"] if command else ["--help"]
    try:
        assert main(words) == 0
    except SystemExit as done:
        assert done.code == 0
    assert (
        f"usage: rollout {command}".rstrip() in capsys.readouterr().out.replace("rollout run", "rollout")
        or command == "run"
    )


def test_help_imports_little(programs: None) -> None:
    """It answers within half a second: a package with compiled code costs more than that alone."""
    script = """import sys
from rollout_ray.cli.main import main
main(["--help"])
others = {name.split(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
print(*sorted(name for name in others if not name.startswith("_")), file=sys.stderr)"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    needed = {"annotated_types", "pydantic", "pydantic_core", "rollout_ray", "typing_extensions", "typing_inspection"}
    assert set(done.stderr.split()) - needed == set()


def completed(words: str, script: str) -> list[str]:
    """What bash offers when Tab is pressed after `words`."""
    split = words.split(" ")
    typed = " ".join(word or "''" for word in split)
    line = f"{script}\nCOMP_WORDS=({typed}); COMP_CWORD={len(split) - 1}; _rollout; printf '%s\\n' ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_bash_completes_commands_flags_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert set(completed("rollout ", script)) == set(COMMANDS)
    assert completed("rollout ex", script) == [name for name in sorted(COMMANDS) if name.startswith("ex")]
    assert {f"--{flag}" for flag in FLAGS} <= set(completed("rollout --", script))
    assert completed("rollout --limit 3 --max_num_b", script) == ["--max_num_batched_tokens"]
    assert completed("rollout --layout ", script) == ["questions", "trajectories", "responses"]
    assert set(completed("rollout export --", script)) >= {"--format", "--margin", "--columns", "--run", "--help"}
    assert "--limit" not in completed("rollout export --", script)
    assert completed("rollout export runs/a x.parquet --format ", script) == list(FORMATS)
    assert {"--on", "--probe", "--limit"} <= set(completed("rollout plan --", script))
    assert {"--output", "--beta"} <= set(completed("rollout rescore a --", script)) != {"--limit"}
    assert completed("rollout prepare ", script) == ["gsm8k", "demo"] and completed("rollout cluster ch", script) == [
        "check"
    ]
    assert completed("rollout --dataset ", script) == []  # bash's own completion of paths follows


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_have_every_flag(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(re.search(rf"(--|-l ){flag}\b", script) for flag in (*FLAGS, "format", "probe", "margin", "adapter"))
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=script, text=True, check=True)


def test_a_local_ray_that_does_not_come_up_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rollout_process: Command
) -> None:
    monkeypatch.setenv("RAY_testing_asio_delay_us", "NodeInfoGcsService.grpc_server.RegisterNode=50000000:50000000")
    prepare_demo(1, 1, tmp_path / "q.parquet")
    words = ["--dataset", str(tmp_path / "q.parquet"), "--output_dir", str(tmp_path / "run"), "--backend", "simulated"]
    done = rollout_process(*words)
    assert done.returncode == 1
    assert re.search(r"^rollout: Ray could not be started on this machine: .* the same command again$", done.stderr, re.M)


# Ray's own file that names the cluster which was last started here, and its wait for one that does not speak.
NO_CLUSTER = """
mkdir -p ray && printf 127.0.0.1:1 >ray/ray_current_cluster
{run} --ray_address auto
rm ray/ray_current_cluster
{run} --ray_address auto
python -c "
import socket, time
other = socket.create_server(('127.0.0.1', 2))
open('port', 'w').close()
time.sleep({hang})" &
until [ -e port ]; do sleep 0.1; done
{run} --ray_address 127.0.0.1:2
"""


def test_a_cluster_that_has_ended_is_not_waited_for(tmp_path: Path, run_alone: Command) -> None:
    prepare_demo(1, 1, tmp_path / "q.parquet")
    environment = clean_environment() | {
        "PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(tmp_path), "RAY_AUTH_TOKEN": "0" * 64,
        "RAY_py_gcs_connect_timeout_s": "1", "RAY_gcs_rpc_server_connect_timeout_s": "1",
    }  # fmt: skip
    run = f"{sys.executable} -m rollout_ray.run --dataset q.parquet --backend simulated"
    done = run_alone(NO_CLUSTER.format(run=run, hang=int(HANG_S)), tmp_path, environment)
    assert [line for line in done.stderr.splitlines() if line.startswith("rollout: ")] == [
        "rollout: no Ray cluster answers at 127.0.0.1:1: [Errno 111] Connection refused; start one with `ray start "
        "--head`, or leave out --ray_address",
        "rollout: no Ray cluster runs on this machine; start one with `ray start --head`, or leave out --ray_address",
        "rollout: no Ray cluster answers at 127.0.0.1:2, though something else does; check --ray_address",
    ]
