"""What a user installs: the wheel, its extras, its console script and the model inside."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import clean_environment


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the checkout (building leaves files in it)."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(checkout, source, symlinks=True, ignore=shutil.ignore_patterns(".venv", "runs", "path"))
    command = [sys.executable, "-m", "pip", "-q", "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_gpu_extra_brings_vllm(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith("METADATA"))
        metadata = archive.read(name).decode()
    assert 'Requires-Dist: vllm<0.34,>=0.26; extra == "gpu"' in metadata
    assert "Requires-Python: <3.14,>=3.11" in metadata
    for needed in ("ray[default]", "transformers", "peft", "torch", "pyarrow", "pandas", "pydantic", "rich", "math-verify"):
        assert f"Requires-Dist: {needed}" in metadata, needed


def test_the_node_provider_is_where_ray_looks_for_it(wheel: Path) -> None:
    """`ray up` and the autoscaler import it by its name, from whatever folder they run in."""
    files = ("lambda_provider.py", "lambda.yaml", "local.yaml")
    with zipfile.ZipFile(wheel) as archive:
        assert {f"rollout_ray/cluster/{name}" for name in files} <= set(archive.namelist())


def test_the_installed_package_runs_from_anywhere(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "-q", "install", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    model = site / "rollout_ray" / "demo_model"
    page = {file.name for file in (site / "rollout_ray" / "report" / "page").iterdir()}
    assert {"report.html", "report.css", "report.js"} <= page
    assert (model / "model.safetensors").stat().st_size < 10_000_000 and (model / "chat_template.jinja").exists()
    done = subprocess.run(
        [sys.executable, str(site / "bin" / "rollout"), "prepare", "demo", "5", "q.parquet"],
        cwd=tmp_path,
        env=clean_environment() | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "5 questions in q.parquet\n", done.stderr
