"""What a hostile model folder, run directory, data set or config cannot do: nothing that is read back is run."""

from __future__ import annotations

import ast
import contextlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rollout_ray import collect
from rollout_ray.core.errors import EngineError, RolloutError
from rollout_ray.export.formats import export
from rollout_ray.models.paths import model_folder
from tests.conftest import ROOT, Command, demo_rows, simulated_greedy


def test_no_module_can_unpickle_or_evaluate_what_it_reads() -> None:
    dangerous = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    # A reward that is a function travels to the scorers as Ray's own pickles do: through memory, and from the driver alone.
    reward = ROOT / "rollout_ray" / "scoring" / "custom_reward.py"
    assert "cloudpickle.load(" not in reward.read_text() and "open(" not in reward.read_text()
    for path in {*ROOT.glob("rollout_ray/**/*.py"), *ROOT.glob("actors/**/*.py")} - {reward}:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not dangerous & {alias.name.partition(".")[0] for alias in node.names}, path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] not in dangerous, path
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "yaml.load", "torch.load", "np.load", "pd.read_pickle"), path


class WritesWhenUnpickled:
    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.write_text, (self._marker, "pickle ran")


def test_a_part_or_a_record_of_an_attacker_runs_no_code(tmp_path: Path, local_ray: None) -> None:
    """Pickles where Arrow and pandas ever looked for them: a Python extension type, the schema's metadata."""
    marker, cfg = tmp_path / "marker", simulated_greedy(tmp_path / "run")
    payload = pickle.dumps(WritesWhenUnpickled(marker))
    pickle.loads(payload)
    assert marker.exists(), "the payload must work"
    marker.unlink()
    rollouts = collect(demo_rows(3), cfg)
    for name in [*rollouts.run.parts(), "merged.parquet"]:
        table = pq.read_table(rollouts.run.path(name))
        extension = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": payload}
        fields = [field.with_metadata(extension) for field in table.schema]
        schema = pa.schema(fields, metadata={"pandas": payload, "rollout_ray": payload})
        pq.write_table(pa.Table.from_arrays(table.columns, schema=schema), rollouts.run.path(name))
    record = json.loads(Path(rollouts.run.path("run.json")).read_text())
    record["config"]["scoring"]["reward"] = "os:abort"
    record["config"]["data"]["gold_key"] = {"py/reduce": [{"py/type": "os.abort"}]}
    Path(rollouts.run.path("run.json")).write_text(json.dumps(record))
    with contextlib.suppress(RolloutError):  # that they were altered may be noticed
        collect(demo_rows(3), cfg)
    with contextlib.suppress(RolloutError):
        export([rollouts.run.uri], tmp_path / "out.jsonl")
    again = tmp_path / "in.parquet"
    shutil.copy(rollouts.run.path("merged.parquet"), again)
    pq.write_table(pq.ParquetFile(again).read().select(["prompt", "gold_answer"]), again)
    collect(str(again), simulated_greedy(tmp_path / "second"))
    assert not marker.exists()


def test_a_config_file_makes_no_objects(tmp_path: Path, rollout: Command) -> None:
    (tmp_path / "c.yaml").write_text(f"data: !!python/object/apply:pathlib.Path.touch ['{tmp_path}/marker']")
    done = rollout("--config", str(tmp_path / "c.yaml"))
    assert done.returncode == 2 and "is not YAML" in done.stderr and not (tmp_path / "marker").exists()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the demo model, to be altered."""
    return Path(shutil.copytree(model_folder("demo"), tmp_path / "model"))


def test_weights_in_a_pickle_run_no_code(tmp_path: Path, model: Path, local_ray: None) -> None:
    import torch

    (model / "model.safetensors").unlink()
    torch.save({"weight": WritesWhenUnpickled(tmp_path / "marker")}, model / "pytorch_model.bin")
    with pytest.raises(EngineError, match="could not start: UnpicklingError: Weights only load failed"):
        collect(demo_rows(1), simulated_greedy(tmp_path / "run", engine={}, model={"model_path": str(model)}))
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("trusted", [False, True])
def test_code_in_a_model_folder_runs_only_when_asked(tmp_path: Path, model: Path, local_ray: None, trusted: bool) -> None:
    marker = tmp_path / "marker"
    (model / "hostile.py").write_text(
        f"open({str(marker)!r}, 'a').write(__name__)\n"
        "from transformers import LlamaConfig as Config, PreTrainedTokenizerFast as Tokenizer\n"
    )
    for file, auto_map in (
        ("config.json", {"AutoConfig": "hostile.Config", "AutoModelForCausalLM": "hostile.Model"}),
        ("tokenizer_config.json", {"AutoTokenizer": [None, "hostile.Tokenizer"]}),
    ):
        content = json.loads((model / file).read_text())
        (model / file).write_text(json.dumps(content | {"auto_map": auto_map}))
    cfg = simulated_greedy(tmp_path / "run", engine={}, model={"model_path": str(model), "trust_remote_code": trusted})
    try:
        found = collect(demo_rows(1), cfg).summary.trajectories
    except EngineError:
        found = 0
    assert marker.exists() == trusted
    assert found == 1 or trusted
