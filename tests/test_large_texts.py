"""Test that the merged rows are read in chunks: Arrow holds at most 2 GiB of text in one nested column."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from rollout_ray.api.collect import Rollouts
from rollout_ray.telemetry.summary import Summary
from tests.conftest import demo_rows
from tests.finished_runs import finished


def test_a_table_has_a_chunk_for_each_row_group(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", demo_rows(20))
    path = run.path("merged.parquet")
    whole = pq.read_table(path)
    pq.write_table(whole, path, row_group_size=7)
    rollouts = Rollouts(path, Summary(), run)
    table = rollouts.table()
    assert table.equals(whole, check_metadata=True)
    assert [len(chunk) for chunk in table.column("trajectories").chunks] == [7, 7, 6]
    assert rollouts.table(["prompt", "trajectories.list.element.reward"]).column_names == ["prompt", "trajectories"]
    assert rollouts.to_pandas()["gold_answer"].tolist() == whole.column("gold_answer").to_pylist()
    pq.write_table(whole.slice(0, 0), path)
    assert rollouts.table().schema.equals(whole.schema, check_metadata=True)
