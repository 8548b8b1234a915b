"""A run's metrics on the Prometheus endpoint of a real Ray head, and the Grafana dashboard that shows them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rollout_ray.data.prepare import prepare_demo
from rollout_ray.telemetry.metrics import COUNTERS, GAUGES, RunMetrics
from rollout_ray.telemetry.run_view import EngineView, RunView
from tests.conftest import ROOT, Command, clean_environment, free_port

DASHBOARD = ROOT / "cluster" / "grafana.json"
EXPORTED = {f"ray_{name}" for name in GAUGES} | {f"ray_{name}_total" for name in COUNTERS}

# The head and the driver report every half second instead of every ten. The probe waits for the metrics and the
# progress of a run, keeps what it saw, and lets the run stop.
SCRIPT = """
export RAY_metrics_report_interval_ms=500 RAY_AUTH_MODE=token
ray start --head --port={gcs} --dashboard-port={dashboard} --metrics-export-port={metrics} --num-cpus=2 >head.log 2>&1
rollout --dataset q.parquet --output_dir 'r ü 1' --backend simulated --ray_address 127.0.0.1:{gcs} \\
    --sim_tokens_per_second 2500 --flush_seconds 0.3 --replicas 2 >run.log 2>&1 &
python - <<'PROBE'
import pathlib, time, urllib.request
deadline = time.monotonic() + 300
wanted = {names!r}
text = ""
log = pathlib.Path("run.log")
while time.monotonic() < deadline and not (all(name in text for name in wanted) and " left; " in log.read_text()):
    try:
        text = urllib.request.urlopen("http://127.0.0.1:{metrics}/metrics", timeout=5).read().decode()
    except OSError:
        pass
    pathlib.Path("metrics.txt").write_text(text)
    time.sleep(0.3)
PROBE
python -c "
import json, ray
from ray.util.state import list_actors
ray.init('127.0.0.1:{gcs}', log_to_driver=False)
actors = list_actors(address='http://127.0.0.1:{dashboard}', detail=True)
json.dump([[a.class_name, a.repr_name] for a in actors], open('actors.json', 'w'))
" >actors.log 2>&1
kill -INT %1; wait %1; echo $? >run.code
ray stop >/dev/null 2>&1
"""


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory, run_alone: Command) -> Path:
    folder = tmp_path_factory.mktemp("metrics")
    prepare_demo(200, 1, folder / "q.parquet")
    script = SCRIPT.format(gcs=free_port(), dashboard=free_port(), metrics=free_port(), names=sorted(EXPORTED))
    run_alone(f"set -m\n{script}", folder, clean_environment() | {"PYTHONPATH": str(ROOT)})
    return folder


def test_a_real_head_exports_every_metric(probed: Path) -> None:
    text = (probed / "metrics.txt").read_text()
    seen = set(re.findall(r"^(ray_rollout_\w+)\{", text, re.MULTILINE))
    assert seen >= EXPORTED, (probed / "run.log").read_text()[-2000:]
    assert re.search(r'^ray_rollout_questions\{.*run="[^"]*r .*xfc 1"', text, re.MULTILINE)
    sample = re.search(r"^ray_rollout_engine_tokens_total\{(.*)\} ([\d.e+]+)$", text, re.MULTILINE)
    assert sample and 'engine="engine-' in sample[1] and float(sample[2]) > 0
    assert re.search(r'^ray_rollout_arm_reward\{.*arm="maudlin_3"', text, re.MULTILINE)
    assert re.search(r'^ray_rollout_score_status_total\{.*status="(in)?correct"', text, re.MULTILINE)


def queries() -> list[str]:
    def walk(value: Any) -> list[str]:
        if isinstance(value, dict):
            own = [value["expr"]] if "expr" in value else []
            return own + [query for entry in value.values() for query in walk(entry)]
        return [query for entry in value for query in walk(entry)] if isinstance(value, list) else []

    return walk(json.loads(DASHBOARD.read_text()))


def test_the_dashboard_asks_for_exported_metrics_only_and_for_all(probed: Path) -> None:
    seen = set(re.findall(r"^(ray_rollout_\w+)\{", (probed / "metrics.txt").read_text(), re.MULTILINE))
    asked = {name for query in queries() for name in re.findall(r"\b(ray_\w+|rollout_\w+)\b", query)}
    assert asked <= seen and asked == EXPORTED


def test_the_actors_have_names_that_read_well(probed: Path) -> None:
    actors = json.loads((probed / "actors.json").read_text())
    assert sorted(map(tuple, actors)) == [
        ("EngineActor", "engine-0"),
        ("EngineActor", "engine-1"),
        ("ScorerActor", "scorer-0"),
    ]
    assert (probed / "run.code").read_text().strip() == "130", (probed / "run.log").read_text()


def test_progress_stands_in_a_log_as_lines(probed: Path) -> None:
    assert re.search(r"[1-9]\d*/1,600 trajectories \(\d+%\); .* left; .* questions, ", (probed / "run.log").read_text())


def test_a_failure_of_the_metrics_is_said_once_and_never_reaches_the_run(caplog: pytest.LogCaptureFixture) -> None:
    """An engine whose figures are no numbers stands for whatever may go wrong."""
    metrics, view = RunMetrics("run"), RunView(total=1, engines={"engine-0": EngineView()})
    view.engines["engine-0"].rate = "fast"  # type: ignore[assignment]
    metrics.update(view)
    view.engines["engine-0"].rate = 0.0
    metrics.update(view)
    metrics.update(view, last=True)
    assert caplog.text.count("metrics are off for the rest of the run") == 1
