"""Where a server is started before anything else of a run, and for engines of which kind. The driver's command of GPUs is a
script; nothing waits for the server's import."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.test_gpus import query

CODE = """
import json, os
os.environ.update({variables})
import psutil
from rollout_ray.actors.engine.process import server_here
from rollout_ray import RunConfig
from rollout_ray.driver.prewarm import prewarm
from rollout_ray.models.resolved_run import resolve
from tests.processes import servers
with prewarm(resolve(RunConfig.model_validate({sections}))):
    found = [server.environ()["VLLM_ENABLE_V1_MULTIPROCESSING"] for server in servers(psutil.Process())]
    print(json.dumps([server_here() is not None, found]))
"""
H100, TWO_KINDS = "echo 'NVIDIA H100, 81559'", "printf 'NVIDIA H100, 81559\\nNVIDIA A100, 40960\\n'"
ON_GPUS, ON_THE_CPU = [True, ["1"]], [True, ["0"]]
CLUSTER = {"resources": {"ray_address": "head:6379"}}


@pytest.mark.parametrize(
    ("command", "variables", "sections", "found"),
    [
        (H100, {}, {}, ON_GPUS),
        (H100, {}, CLUSTER, ON_GPUS),
        (H100, {"CUDA_VISIBLE_DEVICES": ""}, {}, ON_THE_CPU),
        (H100, {"CUDA_VISIBLE_DEVICES": ""}, CLUSTER, [False, []]),
        (H100, {}, {"engine": {"backend": "simulated"}}, [False, []]),
        (TWO_KINDS, {}, {}, [False, ["1"]]),  # vLLM has looked at one of them
    ],
)
def test_a_server_is_started_where_engines_may_use_it(
    tmp_path: Path, command: str, variables: dict[str, str], sections: dict[str, Any], found: list[Any], programs: None
) -> None:
    code = CODE.format(variables=variables, sections=sections)
    assert json.loads(query(tmp_path, command, code)) == found
