"""vLLM's worker as ours extends it, in a real engine on the CPU that compiles its model."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import HANG_S, ROOT

START = """
import os
from rollout_ray.actors.vllm_backend.backend import VllmBackend
from rollout_ray.actors.engine.launch import LaunchSpec
from rollout_ray.config.schema import RunConfig
from rollout_ray.models.resolved_run import resolve

engine = {"enforce_eager": False, "max_model_len": 512}
run = resolve(RunConfig.model_validate({"engine": engine}))
VllmBackend(LaunchSpec.of(run, gpus=0, threads=2))
print(os.environ["TRITON_CACHE_DIR"])
"""


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile for the CPU needs g++")
@pytest.mark.parametrize("own", [None, "kernels"])
def test_a_first_start_leaves_triton_the_cache_that_later_starts_have(
    tmp_path: Path, own: str | None, programs: None
) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")}
    environment["VLLM_CACHE_ROOT"] = str(tmp_path)
    if own:
        environment["TRITON_CACHE_DIR"] = str(tmp_path / own)
    done = subprocess.run(
        [sys.executable, "-c", START], cwd=ROOT, env=environment, text=True, capture_output=True, timeout=HANG_S
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "torch_compile_cache").is_dir()  # it did compile
    assert done.stdout.split()[-1] == str(tmp_path / own if own else tmp_path / "rollout_ray" / "triton")
