"""Token ids and log-probabilities, from a worker's log to the files of a run."""

from __future__ import annotations

import json
import random
from array import array
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rollout_ray import RunConfig
from rollout_ray.actors.backend import Finished
from rollout_ray.actors.vllm_backend.backend import VllmBackend
from rollout_ray.actors.vllm_backend.finished_tokens import FinishedTokens
from rollout_ray.actors.vllm_backend.token_log import KEY, TokenLog, accepted
from rollout_ray.api.pool_fields import engine_fields
from rollout_ray.config.arms import resolve_arms
from rollout_ray.config.loading import with_fields
from rollout_ray.config.schema import DataConfig, Layout
from rollout_ray.core.errors import ConfigError, DatasetError, LedgerError, Refused, VerifyError
from rollout_ray.core.records import PART_SCHEMA, TOKEN_COLUMNS, Completion, Question, SampleSpec
from rollout_ray.data.columns import check_token_columns
from rollout_ray.data.question_set import load_questions
from rollout_ray.export.formats import Source, export
from rollout_ray.report.html import write_report
from rollout_ray.results.merged_file import MergedFile
from rollout_ray.results.rescore import rescore
from rollout_ray.results.verify import verify
from rollout_ray.storage.partial_files import SavedSamples, save_samples
from rollout_ray.storage.run_directory import RunDirectory
from tests.conftest import demo_rows
from tests.finished_runs import altered, drawn, finished, merged_path

Taken = list[tuple[bytes, bytes]]


# A worker's log


def step(log: TokenLog, sampled: dict[str, list[int]], starts: Sequence[int] | None = None) -> None:
    """Record a step in which the log-probability of token t is -t."""
    rows = [[-float(t), 0.0] for tokens in sampled.values() for t in (tokens or [99])]
    log.record(list(sampled), list(sampled.values()), np.array(rows, np.float32), starts)


def values(log: TokenLog, number: int, tokens: list[int]) -> list[float]:
    return accepted(tokens, log.take([number])[0])[1].tolist()


def test_a_log_keeps_each_request_over_chunked_prefills_and_preemptions() -> None:
    log = TokenLog()
    log.begin("a", 1)
    step(log, {"a": [], "of another run": [3]})  # a prefill in chunks samples nothing
    step(log, {"a": [4], "of another run": [5]})
    log.begin("b", 2)
    step(log, {"b": [6], "a": [7]})
    log.begin("a", 1)  # some of vLLM's runners begin a preempted request again
    step(log, {"a": [8], "b": [9]})
    assert values(log, 1, [4, 7, 8]) == [-4, -7, -8]
    assert values(log, 2, [6, 9]) == [-6, -9]
    assert log.take([1, 2, 3]) == [(b"", b"")] * 3
    step(log, {"a": [1]})  # a step that was under way when the request ended
    assert log.take([1]) == [(b"", b"")]


def test_speculation_gives_a_request_several_tokens_a_step() -> None:
    log = TokenLog()
    log.begin("a", 1)
    log.begin("b", 2)
    log.record(["a", "b"], [[5, 6], [7]], np.array([[-5], [-6], [0], [-7], [0], [0]], np.float32), [0, 3, 6])
    assert values(log, 1, [5, 6]) == [-5, -6] and values(log, 2, [7]) == [-7]


def test_tokens_that_vllm_left_out_have_no_log_probability() -> None:
    def taken(*tokens: int) -> tuple[bytes, bytes]:
        return array("i", tokens).tobytes(), array("f", [-float(n) for n in range(len(tokens))]).tobytes()

    ids, logprobs = accepted([5, 6], taken(5, 6, 7))  # sampled beyond the end
    assert (list(ids), logprobs.tolist()) == ([5, 6], [0, -1])
    assert accepted([5, 6, 7], taken(5, 9, 6, 7))[1].tolist() == [0, -2, -3]  # sampled anew after a preemption
    assert accepted([], taken())[1].tolist() == []
    with pytest.raises(RuntimeError, match="for 2 tokens, which are not the 3 tokens of the output; leave out --tokens"):
        accepted([5, 6, 7], taken(5, 6))


class Workers:
    """Three workers, of which the second samples; as vLLM's collective_rpc."""

    def __init__(self) -> None:
        self.log = TokenLog()

    def __call__(self, method: str, args: tuple[list[int]]) -> list[Taken]:
        assert method == "rollout_take_tokens"
        return [[(b"", b"")] * len(args[0]), self.log.take(*args), []]

    def run(self, tokens: FinishedTokens, key: str, sampled: list[int]) -> None:
        given = tokens.parameters(key, {"extra_args": {"own": 1}})
        assert given["logprobs"] == 0 and given["extra_args"]["own"] == 1
        name = f"{key}-{given['extra_args'][KEY]}"
        self.log.begin(name, given["extra_args"][KEY])
        for token in sampled:
            step(self.log, {name: [token]})


def outputs(*tokens: list[int]) -> list[Any]:
    return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=one)]) for one in tokens]


def test_finished_requests_get_their_tokens_and_aborted_ones_are_forgotten() -> None:
    workers = Workers()
    tokens = FinishedTokens(workers)
    assert (
        tokens.parameters("k", {}) == {} and tokens.given([Finished("k", "", 1, "stop")], outputs([1]))[0].token_ids is None
    )
    tokens.begin(True)
    workers.run(tokens, "a", [1, 2])
    workers.run(tokens, "b", [3])
    tokens.drop(["b", "never added"])
    workers.run(tokens, "b", [4, 5])  # the same key comes back after samples were returned
    ended = [Finished("b", "", 2, "stop"), Finished("aborted", "", 1, "stop"), Finished("a", "", 2, "length")]
    done = tokens.given(ended, outputs([4, 5], [9], [1, 2]))
    assert [one.token_ids for one in done] == [array("i", [4, 5]), array("i", [1, 2])]
    assert [one.logprobs for one in done] == [array("f", [-4, -5]), array("f", [-1, -2])]
    workers.run(tokens, "c", [6])
    tokens.begin(False)  # drops what an earlier run left
    assert workers.log._tokens == {} and workers.log._names == {}


def test_a_request_that_vllm_refuses_is_forgotten() -> None:
    asked: list[list[int]] = []

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("no")

    backend = VllmBackend.__new__(VllmBackend)  # without an engine
    backend._engine = SimpleNamespace(add_request=refuse)
    backend._parameters, backend._max_model_len, backend._vllm_decodes = defaultdict(dict), 9, True
    backend._sampling_params, backend._refusals = dict, (ValueError,)
    backend._tokens = tokens = FinishedTokens(lambda _, args: asked.append(args[0]) or [[(b"", b"")] * len(args[0])])
    tokens.begin(True)
    with pytest.raises(Refused, match="vLLM refused the request: no"):
        backend.add("k", [1], SampleSpec(resolve_arms(RunConfig())[0], 0), 7)
    tokens.parameters("next", {})
    tokens.given([Finished("next", "", 0, "stop")], outputs([]))
    assert asked == [[1, 0]], "the workers are told of both"


# The config


def test_tokens_are_part_of_the_identity_and_older_runs_keep_theirs() -> None:
    plain = RunConfig()
    assert {"output.tokens", "output.logprobs"}.isdisjoint(plain.identity())
    given = RunConfig.model_validate({"output": {"tokens": True}})
    assert given.identity() == plain.identity() | {"output.tokens": True}
    raw = RunConfig.model_validate({"output": {"tokens": True, "logprobs": "raw"}})
    assert len({plain.digest(), given.digest(), raw.digest()}) == 3
    assert len({json.dumps(engine_fields(cfg)) for cfg in (plain, given, raw)}) == 3, "another engine serves each"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"output": {"logprobs": "raw"}}, "logprobs is raw, but none are stored; give --tokens true"),
        ({"sampling": {"extra_sampling": {"logprobs": 1}}}, "logprobs cannot stand here: .* give --tokens true"),
        ({"sampling": {"extra_sampling": {"prompt_logprobs": 1}}}, "the sampled tokens only, with --tokens true"),
        (
            {"output": {"tokens": True}, "engine": {"extra": {"logprobs_mode": "raw_logits"}}},
            "engine.extra holds logprobs_mode, which a run with --tokens sets itself; leave it out",
        ),
    ],
)
def test_contradictions_are_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        RunConfig.model_validate(sections)


# The files


def with_tokens(question: Question, draw: int, seed: int, max_tokens: int) -> Completion:
    """A completion with tokens; refused prompts have none."""
    one = drawn(question, draw, seed, max_tokens)
    if one.finish_reason == "error":
        return replace(one, prompt_token_ids=None if question.fault else range(7))
    rng = random.Random(seed)
    ids = array("i", (rng.randrange(32_000) for _ in range(one.num_tokens)))
    logprobs = array("f", (-rng.random() for _ in ids))
    prompt = range(draw // 4, draw // 4 + one.num_prompt_tokens)
    return replace(one, token_ids=ids, logprobs=logprobs, prompt_token_ids=prompt)


ARMS = {"arm_list": [{"name": n, "samples": 4, "system_prompt": s} for n, s in (("plain", None), ("terse", "Be terse."))]}


def run_with_tokens(folder: Path, layout: Layout = "questions", rows: Any = None, **output: Any) -> RunDirectory:
    rows = demo_rows(6) if rows is None else rows
    section = {"output_dir": str(folder), "layout": layout, "tokens": True, **output}
    return finished(folder, rows, with_tokens, output=section, arms=ARMS, sampling={"max_tokens": 40})


def test_tokens_stand_beside_texts_in_both_layouts(tmp_path: Path) -> None:
    nested = pq.read_table(merged_path(run_with_tokens(tmp_path / "nested")))
    flat = pq.read_table(merged_path(run_with_tokens(tmp_path / "flat", "trajectories")))
    entry = nested.schema.field("trajectories").type.value_type
    assert entry.field("token_ids").type == pa.list_(pa.int32()) and entry.field("logprobs").type == pa.list_(pa.float32())
    assert nested.schema.field("prompt_token_ids").type == pa.list_(pa.list_(pa.int32()))
    assert flat.schema.field("prompt_token_ids").type == pa.list_(pa.int32())
    assert json.loads(nested.schema.metadata[b"rollout_ray"])["logprobs"] == "sampled"
    rows = flat.to_pylist()
    for question in nested.to_pylist():
        for trajectory in question["trajectories"]:
            row = next(r for r in rows if r["question_id"] == question["question_id"] and r["seed"] == trajectory["seed"])
            assert trajectory.items() <= row.items()
            assert row["prompt_token_ids"] == question["prompt_token_ids"][trajectory["prompt_variant"]]
            failed = trajectory["finish_reason"] == "error"
            assert len(trajectory["token_ids"]) == len(trajectory["logprobs"]) == trajectory["num_tokens"]
            assert failed or row["prompt_token_ids"][0] == (trajectory["arm"] == "terse")


def test_a_run_without_tokens_keeps_its_schema(tmp_path: Path) -> None:
    table = pq.read_table(merged_path(finished(tmp_path / "run", demo_rows(3), with_tokens)))
    assert table.schema.field("trajectories").type == PART_SCHEMA.field("trajectories").type
    assert not {*TOKEN_COLUMNS} & {*table.column_names}


@pytest.mark.parametrize("layout", ["questions", "trajectories"])
def test_what_reads_merged_files_reads_tokens(tmp_path: Path, layout: Layout) -> None:
    rows = [*demo_rows(5), {"prompt": None, "gold_answer": "1"}]  # the last one cannot be asked
    run = run_with_tokens(tmp_path / "run", layout, rows)
    assert verify(run.uri).agrees
    again = rescore(run.uri, ["--alpha", "2"])
    assert verify(again.path).agrees
    old, new = (pq.read_table(path).drop_columns(["s_wm"]) for path in (merged_path(run), again.path))
    column = "trajectories" if layout == "questions" else "token_ids"
    assert tokens_of(old, column) == tokens_of(new, column)
    assert write_report(run.uri).questions == 6
    export([run.uri], tmp_path / "flat.parquet", "trajectories")
    with MergedFile(str(tmp_path / "flat.parquet")) as merged:
        assert merged.tokens and verify(merged.path).agrees


def tokens_of(table: pa.Table, column: str) -> list[Any]:
    found = table.column(column).to_pylist()
    if column == "token_ids":
        return found
    return [[(t["token_ids"], t["logprobs"], t["prompt_variant"]) for t in question] for question in found]


def test_exports_hold_the_tokens(tmp_path: Path) -> None:
    run = run_with_tokens(tmp_path / "run")
    stored = {row["question_id"]: row for row in pq.read_table(merged_path(run)).to_pylist()}
    export([run.uri], tmp_path / "grpo.parquet", "grpo")
    export([run.uri], tmp_path / "grpo.jsonl", "grpo")
    table = pq.read_table(tmp_path / "grpo.parquet")
    assert json.loads(table.schema.metadata[b"rollout_ray"])["logprobs"] == "sampled"
    lines = [json.loads(line) for line in (tmp_path / "grpo.jsonl").read_text().splitlines()]
    assert table.num_rows == len(lines) > 0
    for row, line in zip(table.to_pylist(), lines, strict=True):
        question = stored[row["question_id"]]
        ids = {t["full_text"]: t for t in question["trajectories"]}
        for n, reply in enumerate(row["completions"]):
            trajectory = ids[reply[0]["content"]]
            assert row["completion_ids"][n] == line["completion_ids"][n] == trajectory["token_ids"]
            assert row["logprobs"][n] == line["logprobs"][n] == trajectory["logprobs"]
            assert row["prompt_ids"][n] == question["prompt_token_ids"][trajectory["prompt_variant"]]
    export([run.uri], tmp_path / "all.jsonl", source=Source(columns="all"))
    whole = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [row["prompt_token_ids"] for row in whole] == [row["prompt_token_ids"] for row in stored.values()]
    raw = run_with_tokens(tmp_path / "raw", logprobs="raw")
    export([run.uri, raw.uri], tmp_path / "pairs.parquet", "dpo")
    with pytest.raises(ConfigError, match="The runs have logprobs raw and logprobs sampled"):
        export([run.uri, raw.uri], tmp_path / "both.parquet", "grpo")


@pytest.mark.parametrize("layout", ["questions", "trajectories"])
def test_a_file_without_the_tokens_of_its_prompts_is_refused(tmp_path: Path, layout: Layout) -> None:
    run = run_with_tokens(tmp_path / "run", layout, demo_rows(1))
    table = pq.read_table(merged_path(run))
    pq.write_table(table.drop_columns(["prompt_token_ids"]), tmp_path / "file.parquet")
    with pytest.raises(VerifyError, match=r"file\.parquet has no column prompt_token_ids, which the run wrote; merge"):
        verify(str(tmp_path / "file.parquet"))


def test_verify_names_tokens_that_cannot_be_right(tmp_path: Path) -> None:
    run = run_with_tokens(tmp_path / "run")

    def change(rows: list[dict[str, Any]]) -> None:
        found = [t for row in rows for t in row["trajectories"] if t["finish_reason"] != "error"]
        found[0]["token_ids"] = found[0]["token_ids"][1:]
        found[1]["logprobs"][0] = 0.5
        found[2]["logprobs"][0] = float("nan")
        found[3]["prompt_variant"] = 1 - found[3]["prompt_variant"]
        next(row for row in rows if found[-1] in row["trajectories"])["prompt_token_ids"][1] = [1]

    result = verify(altered(merged_path(run), tmp_path / "altered.parquet", change))
    texts = " ".join(result.lines())
    assert result.counts["prompt_variant"] == 1 and result.counts["tokens"] >= 4
    for words in (
        "number of token_ids: stored",
        "logprobs: stored 0.5, recomputed 'a finite",
        "number of prompt_token_ids",
    ):
        assert words in texts, texts


def test_a_run_is_not_resumed_with_tokens_that_its_parts_lack(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", demo_rows(2))
    cfg = with_fields(RunConfig(), {"output": {"tokens": True, "output_dir": str(tmp_path / "run")}})
    with pytest.raises(LedgerError, match=r"output\.tokens was .* and is true"):
        run.open({**cfg.identity(), "data.fingerprint": run.record()["identity"]["data.fingerprint"]}, {})
    assert RunDirectory(run.uri).record()["schema_version"] == 2
    assert run_with_tokens(tmp_path / "other").record()["schema_version"] == 3


def test_samples_that_a_stopped_session_saved_keep_their_tokens(tmp_path: Path) -> None:
    run = run_with_tokens(tmp_path / "run")
    ids, logprobs = array("i", [5, 6]), array("f", [-0.1, -2.5])
    plain = Completion(0, "a", 3, 2, "stop", "engine-0")
    stored = replace(plain, sample_index=1, token_ids=ids, logprobs=logprobs, prompt_token_ids=[1, 2, 3])
    assert save_samples(run, {"q": [plain, stored]}) == 2
    saved = SavedSamples(run).of("q")
    assert saved[0] == plain
    assert saved[1] == replace(stored, token_ids=ids.tolist(), logprobs=logprobs.tolist())


def test_an_input_has_no_column_of_tokens() -> None:
    source = load_questions([{**row, "prompt_token_ids": [1]} for row in demo_rows(2)], DataConfig()).source
    with pytest.raises(
        DatasetError, match="has a column 'prompt_token_ids', a name of the output with --tokens; rename it"
    ):
        check_token_columns(source)
