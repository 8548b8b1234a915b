"""`rollout cluster check`: the shipped YAML against the fake account, and what it says of wrong ones."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rollout_ray.cli.main import main
from tests.cluster.conftest import KEY, Account
from tests.conftest import ROOT

CANNOT = "cluster.yaml cannot be launched:\n  "
Check = Callable[[dict[str, Any]], tuple[int, str]]
H100 = ("available_node_types", "h100", "node_config", "instance_type")
HEAD = ("available_node_types", "head", "node_config")


@pytest.fixture
def ssh_key(tmp_path: Path) -> Path:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("there is no ssh-keygen")
    path = tmp_path / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with Ray's token in it; the working directory is the checkout's root."""
    folder = tmp_path / "home"
    (folder / ".ray").mkdir(parents=True)
    (folder / ".ray" / "auth_token").touch()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(ROOT)
    return folder


@pytest.fixture
def check(
    account: Callable[..., Account], ssh_key: Path, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Check:
    """Checks the shipped YAML with the given changes, (path of keys) -> value; returns exit code and what is said."""
    one = account(ssh_keys={"laptop": ssh_key.with_suffix(".pub").read_text().strip()})

    def run(changes: dict[tuple[str, ...], Any]) -> tuple[int, str]:
        config = yaml.safe_load((ROOT / "cluster" / "lambda.yaml").read_text())
        config["provider"] = one.provider_config(state, file_systems=config["provider"]["file_systems"])
        config["auth"]["ssh_private_key"] = str(ssh_key)
        for keys, value in changes.items():
            block = config
            for key in keys[:-1]:
                block = block[key]
            block[keys[-1]] = value
        path = tmp_path / "cluster.yaml"
        path.write_text(yaml.safe_dump(config))
        code = main(["cluster", "check", str(path)])
        said = capsys.readouterr()
        assert one.truth()["instances"] == [] and KEY not in said.out + said.err
        return code, (said.out + said.err).replace(f"{tmp_path}/", "")

    return run


def test_the_shipped_yaml_is_good_and_its_price_is_told(check: Check) -> None:
    code, said = check({})
    print(said)
    assert code == 0
    assert said.splitlines() == [
        "cluster rollout in us-east-1, SSH key laptop",
        "file system rollouts at /lambda/nfs/rollouts",
        "head: the head",
        "  cpu_4x_general: $0.20 an hour each, available now",
        "  gpu_1x_a10: $0.75 an hour each, available now",
        "h100: 0 to 4 workers",
        "  gpu_8x_h100_sxm5: $23.92 an hour each, available now",
        "an hour costs $0.20 when idle and $96.43 at most (max_workers 4)",
        "a worker ends after 5 idle minutes; the head costs until ray down",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {H100: "gpu_8x_h100"},
            f"{CANNOT}available_node_types.h100: there is no instance type gpu_8x_h100; take one of "
            "gpu_8x_a100_80gb_sxm4, gpu_8x_h100_sxm5",
        ),
        (
            {("provider", "region"): "us-moon-1", ("provider", "file_systems"): []},
            f"{CANNOT}provider.region: there is no region us-moon-1; take one of us-east-1, "
            "us-south-1, us-west-1\n  available_node_types.head: us-moon-1 has no cpu_4x_general or gpu_1x_a10 now, and "
            "nothing starts without the head (cpu_4x_general is available in: us-east-1; gpu_1x_a10 is available in: "
            "us-east-1)",
        ),
        (
            {("provider", "ssh_key_name"): "desktop"},
            f"{CANNOT}provider.ssh_key_name: the account has no SSH key desktop; take one of "
            "laptop, or add it at https://cloud.lambda.ai/ssh-keys",
        ),
        (
            {("provider", "file_systems"): ["far", "nowhere"]},
            f"{CANNOT}provider.file_systems: far is in us-west-1, not in us-east-1; change "
            "provider.region, or create one there\n  provider.file_systems: the account has no file system nowhere; take "
            "one of far, rollouts, or create it",
        ),
        (
            {("provider", "module"): "cluster.lambda_provider.LambdaNodeProvider"},
            "provider.module is cluster.lambda_provider.LambdaNodeProvider, which has moved; "
            "write rollout_ray.cluster.lambda_provider.LambdaNodeProvider",
        ),
        (
            {("provider", "regoin"): "us-east-1"},
            "provider.regoin is not a key of the Lambda provider; is region meant?",
        ),
        (
            {("available_node_types", "h100", "resources"): {"CPU": 208, "GPU": 16}},
            f"{CANNOT}available_node_types.h100: resources.GPU is 16, but a gpu_8x_h100_sxm5 has 8; write at most 8",
        ),
        (
            {("auth", "ssh_private_key"): "/nowhere/id"},
            f"{CANNOT}auth.ssh_private_key: /nowhere/id does not exist; give the private half of SSH key laptop",
        ),
    ],
)
def test_a_wrong_yaml_is_refused(check: Check, changes: dict[tuple[str, ...], Any], message: str) -> None:
    assert check(changes) == (2, f"rollout: {message}\n")


def test_a_private_key_of_another_pair_is_refused(check: Check, tmp_path: Path) -> None:
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    code, said = check({("auth", "ssh_private_key"): str(other)})
    assert code == 2 and "other is not the private half of SSH key laptop" in said


def test_a_yaml_that_ray_refuses_is_refused(check: Check) -> None:
    code, said = check({("max_worker",): 3})
    assert code == 2 and "Ray does not accept it" in said and "max_worker" in said


def test_a_file_that_is_to_be_mounted_and_is_not_here_is_named(
    check: Check, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`ray up` would launch the head, which costs money, and fail then."""
    (home / ".ray" / "auth_token").unlink()
    token = "file_mounts: ~/.ray/auth_token does not exist; make it with `ray get-auth-token --generate`"
    assert check({}) == (2, f"rollout: {CANNOT}{token}\n")
    monkeypatch.chdir(home)
    code, said = check({("file_mounts", "~/data"): "/nowhere/data"})
    own = ("pyproject.toml", "README.md", "LICENSE", "rollout_ray", "actors", "jobs", "cluster")
    sentences = [f"file_mounts: {name} does not exist; run this from the checkout's root" for name in own]
    sentences += [token, "file_mounts: /nowhere/data does not exist; put it there, or change file_mounts"]
    assert code == 2 and sorted(said.splitlines()[1:]) == sorted(f"  {one}" for one in sentences)
    assert main(["cluster", "check", str(ROOT / "cluster" / "local.yaml")]) == 2
    assert token in capsys.readouterr().err


def test_a_key_in_the_environment_alone_is_too_little(check: Check, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMBDA_API_KEY", KEY)
    assert check({})[0] == 0
    (state / "api_key").unlink()
    code, said = check({})
    assert code == 10 and "ray up copies this file to the head, so that LAMBDA_API_KEY alone is not enough" in said
    assert "set LAMBDA_API_KEY" not in said


def test_the_yaml_for_ones_own_machines_is_good(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", "check", str(ROOT / "cluster" / "local.yaml")]) == 0
    assert capsys.readouterr().out == "cluster rollout: head 192.168.1.10, 2 worker machines of your own\n"


def test_an_api_that_cannot_be_reached_is_another_exit_code(check: Check) -> None:
    code, said = check({("provider", "api_url"): "http://127.0.0.1:9"})
    assert code == 10 and "ConnectionError (network); try again in a few minutes" in said
