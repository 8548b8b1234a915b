"""What a notebook shows of a run: a table, figures, and progress in a real Jupyter kernel."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from rollout_ray import Rollouts
from rollout_ray.core.errors import ConfigError
from rollout_ray.report.estimators import wilson
from rollout_ray.telemetry.arm_summary import ArmSummary
from rollout_ray.telemetry.notebook import progress_here, summary_html
from rollout_ray.telemetry.progress import Silent
from rollout_ray.telemetry.summary import Summary
from tests.conftest import ROOT, clean_environment, demo_rows
from tests.finished_runs import finished, merged_path


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Rollouts:
    """20 questions under eight arms."""
    run = finished(tmp_path_factory.mktemp("notebook") / "run", demo_rows(20))
    return Rollouts(merged_path(run), Summary(), run)


class Seen(HTMLParser):
    """The tags and the text of some HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_run_is_a_table_and_every_text_in_it_is_escaped() -> None:
    arms = {"terse": ArmSummary(4, 40, 4, 3, 4, 2.0), "<script>alert(1)</script>\u202e": ArmSummary(2, 6)}
    summary = Summary(2, 6, 46, arms=arms, score_status=Counter({"<b>": 2}))
    seen = Seen(summary_html(summary, "/a/<img src=x>/merged.parquet"))
    assert set(seen.tags) == {"table", "thead", "tbody", "tr", "th", "td", "p", "br"} and seen.tags["tr"] == 3
    for text in ("75.0%", "0.500", "<script>alert(1)</script>\\u202e", "/a/<img src=x>/merged.parquet", "<b> 2"):
        assert text in seen.text


def test_outside_a_notebook_nobody_asked_for_progress() -> None:
    assert type(progress_here()) is Silent


def test_figures_show_what_the_file_holds(rollouts: Rollouts) -> None:
    samples = [t for row in rollouts.table().to_pylist() for t in row["trajectories"]]
    (axes,) = rollouts.plot_accuracy().axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list(dict.fromkeys(t["arm"] for t in samples))
    graded = [t["correct"] for t in samples if t["arm"] == "wolfram_0" and t["correct"] is not None]
    (container,) = axes.containers
    line, _, (bars,) = container.lines
    low, high = sorted(point[0] for point in bars.get_segments()[0])
    assert line.get_xdata()[0] == pytest.approx(sum(graded) / len(graded))
    assert (low, high) == pytest.approx(wilson(sum(graded), len(graded)))
    for figure, field in [(rollouts.plot_rewards(), "reward"), (rollouts.plot_lengths(), "num_tokens")]:
        (axes,) = figure.axes
        heights = {group.get_label(): sum(bar.get_height() for bar in group) for group in axes.containers}
        outcome = {True: "right", False: "wrong or no answer", None: "not graded"}
        assert heights == Counter(outcome[t["correct"]] for t in samples if t[field] is not None)


def test_without_matplotlib_it_says_what_to_install(rollouts: Rollouts) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from rollout_ray.report import plots\n"
        "try: plots.accuracy(sys.argv[1])\n"
        "except ImportError as error: print(error)"
    )
    command = [sys.executable, "-c", code, rollouts.path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "matplotlib is not installed, and the plots need it. Run: pip install matplotlib\n"


def test_a_file_without_scores_has_no_figures(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", demo_rows(2), output={"output_dir": str(tmp_path / "run"), "layout": "responses"})
    with pytest.raises(ConfigError, match="'responses', which holds no scores"):
        Rollouts(merged_path(run), Summary(), run).plot_lengths()


CELL = """
from rollout_ray import RunConfig, collect
engine = {{"backend": "simulated", "simulated": {{"sim_tokens_per_second": 20_000}}}}
cfg = RunConfig(engine=engine, resources={{"replicas": 2}}, output={{"output_dir": {output!r}}})
rollouts = collect({rows!r}, cfg)
"""


def test_a_notebook_shows_progress_table_and_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: None
) -> None:
    """A real kernel: the live view is drawn while the run goes on, and the last line of a cell shows the run."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class Here(AsyncKernelManager):
        """The kernel of this interpreter, whatever kernels are installed."""

        @property
        def kernel_spec(self) -> KernelSpec:
            command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=command, display_name="here", language="python")

    for name, value in clean_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    code = CELL.format(output=str(tmp_path / "run"), rows=demo_rows(30))
    cells = [nbformat.v4.new_code_cell(text) for text in (code, "rollouts", "rollouts.plot_lengths()")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = nbclient.NotebookClient(notebook, timeout=200, km=Here(), store_widget_state=True)
    client.execute()
    widgets = json.dumps(client.widget_state)
    assert "score status" in widgets and "engine-1" in widgets
    outputs: list[dict[str, Any]] = [cell.outputs[-1]["data"] for cell in notebook.cells[1:]]
    assert "<td>wolfram_0</td>" in outputs[0]["text/html"] and "30 questions, 240 trajectories" in outputs[0]["text/html"]
    assert outputs[1]["image/png"]
