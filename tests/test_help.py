"""`rollout --help` and `--version`: what they name, and in which order."""

from __future__ import annotations

import re
import typing

import pytest

import rollout_ray
from rollout_ray.cli.commands import COMMANDS
from rollout_ray.cli.main import main
from rollout_ray.config.loading import FLAGS
from rollout_ray.config.schema import RunConfig, leaf_fields


@pytest.fixture
def help_page(capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["--help"]) == 0
    return capsys.readouterr().out


def test_every_flag_is_there_once(help_page: str) -> None:
    flags = re.findall(r"^  --(\w+)", help_page.partition("exit codes:")[2], re.MULTILINE)
    assert sorted(flags) == sorted(FLAGS)


def test_every_command_is_there(help_page: str) -> None:
    assert set(re.findall(r"^  rollout ([\w-]+)", help_page, re.MULTILINE)) == set(COMMANDS)


def test_the_flags_of_the_simulated_engine_come_last_under_a_heading_of_their_own(help_page: str) -> None:
    before, heading, after = help_page.partition("\nengine: simulated: ")
    assert heading and "--sim_" not in before
    assert set(re.findall(r"^  --(\w+)", after, re.MULTILINE)) == {flag for flag in FLAGS if flag.startswith("sim_")}


def test_a_field_of_few_values_names_them(help_page: str) -> None:
    words = " ".join(help_page.split())
    chosen = [field.annotation for field in leaf_fields(RunConfig).values()]
    literals = [kind for kind in chosen if typing.get_origin(kind) is typing.Literal]
    assert literals
    for kind in literals:
        assert f"(one of {', '.join(typing.get_args(kind))}; default: " in words


def test_lines_fit_a_terminal(help_page: str) -> None:
    assert max(map(len, help_page.splitlines())) <= 120


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rollout {rollout_ray.__version__}\n"
