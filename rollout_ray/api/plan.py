"""Gather the facts of a plan: the machines, the model, the lengths of the prompts, and a probe on request.

sizing/estimate.py does the arithmetic. Without a probe this starts nothing and uses no GPU.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, replace

import pyarrow as pa

from rollout_ray.config.arms import chat_messages
from rollout_ray.config.loading import with_fields
from rollout_ray.config.notices import notices
from rollout_ray.config.schema import RunConfig
from rollout_ray.core.errors import BudgetSpent, ConfigError, DatasetError, Refused
from rollout_ray.core.records import Arm, Prompt, Question
from rollout_ray.data.question_set import QuestionSet, check_faults, load_questions
from rollout_ray.models.local_tokenizer import load_encoder
from rollout_ray.models.model_check import check_before_start
from rollout_ray.models.model_size import ModelSize, model_size
from rollout_ray.models.prompt_report import PromptReport, report_prompts
from rollout_ray.models.prompt_wording import Examples
from rollout_ray.models.resolved_run import ResolvedRun, resolve
from rollout_ray.ray_cluster.placement import Node, Placement, choose_placement, scorers_for
from rollout_ray.sizing.estimate import Plan, Prompts, count_part_files, estimate_disk_bytes, expected_output
from rollout_ray.sizing.gpus import local_gpus, smallest
from rollout_ray.sizing.hardware import Gpu, Layout, gpu_kind, lay_out, longest_sequence, parse_gpus
from rollout_ray.sizing.probe import probe_caveat, probe_size
from rollout_ray.sizing.throughput import Rates, from_data_sheet, from_run
from rollout_ray.storage.run_directory import RunDirectory
from rollout_ray.telemetry.progress import Progress

MOST_TOKENIZED = 2000  # questions
CORES_PER_GPU = 8
CHARACTERS_PER_TOKEN = 3.5
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


@dataclass(frozen=True)
class _Machines:
    """What a run gets: the smallest GPU, the model's size, and the engines. None: unknown, or no GPU."""

    gpu: Gpu | None
    size: ModelSize | None
    placement: Placement
    layout: Layout | None


@dataclass(frozen=True)
class _EngineLoad:
    """What one engine gets: requests, and mean tokens of a prompt and of an output."""

    requests: int
    prompt_tokens: float
    output_tokens: float


def make_plan(
    cfg: RunConfig,
    on: str | None = None,
    earlier: str | None = None,
    probe: int | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Return the plan of a run of this config.

    Args:
        cfg: The config of the run.
        on: GPUs to plan for, such as 8xH100. None: the GPUs of this machine.
        earlier: Run directory of a finished run, whose speed and lengths count.
        probe: Questions to run first, and to throw away. 0: as many as fill the engines three times, but at most a tenth
            of the run. None: no probe.
        progress: Shows the probe.

    Raises:
        ConfigError, DatasetError, PlacementError: The run is not possible. A probe raises what `collect` raises.
    """
    if cfg.data.dataset is None:
        raise ConfigError("no data set was given; name one with --dataset")
    run = resolve(cfg)
    questions = load_questions(cfg.data.dataset, cfg.data)
    check_faults(questions)
    run = replace(run, examples=Examples.of(questions.questions()))
    if on is None:  # a plan for GPUs elsewhere needs the model's config alone
        check_before_start(run)
    machines = _place(run, on)
    prompts = _prompts(run, questions, machines.size)
    rates = _rates_of(earlier) if earlier else None
    if probe is not None:
        rates = _probed(run, questions, machines.placement, probe, progress)
    elif on or rates is None:
        load = _EngineLoad(
            requests=-(-len(questions) * run.samples_per_question // machines.placement.replicas),
            prompt_tokens=prompts.mean,
            output_tokens=expected_output(run.arms, rates)[0],
        )
        rates = _data_sheet(machines, load, rates)
    return _plan(run, questions, machines, prompts, rates)


def _plan(run: ResolvedRun, questions: QuestionSet, machines: _Machines, prompts: Prompts, rates: Rates | None) -> Plan:
    output, assumed = expected_output(run.arms, rates)
    placement, gpu = machines.placement, machines.gpu
    plan = Plan(
        name=questions.source.name,
        questions=len(questions),
        graded=questions.gold_key is not None,
        arms=run.arms,
        prompts=prompts,
        engines=placement.replicas,
        gpus=placement.replicas * placement.gpus,
        placed=placement.note.partition(";")[0],
        layout=machines.layout,
        rates=rates,
        output_tokens=output,
        assumed=assumed,
        part_files=0,
        disk_bytes=estimate_disk_bytes(len(questions) * run.samples_per_question, output, prompts.mean, rates),
        price_per_hour=run.config.resources.price_per_hour,
        unknown_gpu=gpu.name if gpu and gpu_kind(gpu).guessed else None,
        budget=run.config.resources.budget,
        budget_seconds=run.config.resources.budget_seconds,
        notices=notices(run.config, run.arms),
    )
    scorers = scorers_for(run.config, placement.replicas)
    return replace(plan, part_files=count_part_files(run.config, len(questions), scorers, plan.generation_seconds))


def _place(run: ResolvedRun, on: str | None) -> _Machines:
    """Choose the engines of a run on the GPUs `on`, or on this machine."""
    nodes, gpu = _nodes(on)
    size = model_size(run)
    placement = choose_placement(nodes, run, gpu, size)
    layout = lay_out(run, size, gpu, max(node.gpus for node in nodes)) if placement.gpus else None
    return _Machines(gpu, size, placement, layout)


def _nodes(on: str | None) -> tuple[list[Node], Gpu | None]:
    """Return the nodes, and their smallest GPU."""
    if on:
        count, gpus, kind = parse_gpus(on)
        return [Node(gpus * CORES_PER_GPU, gpus)] * count, Gpu(kind.name, kind.memory_gib)
    here = local_gpus()
    return [Node(len(os.sched_getaffinity(0)), len(here))], smallest(here)


def _data_sheet(machines: _Machines, load: _EngineLoad, earlier: Rates | None) -> Rates | None:
    """Return the rates of the GPU's data sheet, with the lengths of an earlier run.

    The batch is as large as the limits, the requests and the KV cache allow. Returns `earlier` if the GPU or the model's
    size is unknown.
    """
    size, layout = machines.size, machines.layout
    kind = gpu_kind(machines.gpu) if machines.gpu else None
    if kind is None or kind.guessed or layout is None or size is None:
        return earlier
    held = max(1.0, load.prompt_tokens + load.output_tokens / 2)
    room = (layout.kv_tokens or 0) / held
    batch = max(1, min(layout.limits.max_num_seqs, int(room), load.requests))
    sheet = from_data_sheet(size, kind, layout.tensor_parallel_size, batch, load.prompt_tokens, load.output_tokens)
    return replace(sheet, mean_tokens=earlier.mean_tokens if earlier else {})


def _rates_of(run_dir: str) -> Rates:
    """Return the rates that an earlier run measured. Raises ConfigError if it is not a finished run."""
    run = RunDirectory(run_dir)
    finished = [event["summary"] for event in run.events() if event["event"] == "finished"]
    for summary in reversed(finished):
        trajectories = summary.get("trajectories") or 0
        size = next((entry.size for entry in run.entries() if entry.name == "merged.parquet"), 0)
        each = size / trajectories if size and trajectories else None
        if rates := from_run(summary, each, f"the run {run_dir}"):
            return rates
    raise ConfigError(f"{run_dir} holds no finished run that has generated something; name one with --from, or use --probe")


def _probed(
    run: ResolvedRun,
    questions: QuestionSet,
    placement: Placement,
    wanted: int,
    progress: Progress | None,
) -> Rates:
    """Return the rates that a run over evenly spread questions measures."""
    from rollout_ray.api.collect import collect

    places = placement.limits.max_num_seqs * placement.replicas
    count = probe_size(len(questions), run.samples_per_question, places, wanted)
    rows = _spread(questions, count)
    with tempfile.TemporaryDirectory(prefix="rollout-probe-") as folder:
        probe = {"output": {"output_dir": folder}, "data": {"limit": None, "lengths_from": None}}
        try:
            collect(rows, with_fields(run.config, probe), progress=progress)
        except BudgetSpent:
            raise ConfigError(
                f"the probe of {count} questions did not end within the budget of {run.config.resources.budget}. Give a "
                "smaller --probe, or a longer --budget"
            ) from None
        measured = replace(_rates_of(folder), source=f"a probe of {count} questions")
        return replace(measured, caveat=probe_caveat(count, run.samples_per_question, places))


def _spread(questions: QuestionSet, count: int) -> pa.Table:
    """Return `count` rows of the input at even distances."""
    total, begin = len(questions), 0
    batches = []
    chosen = sorted({number * total // count for number in range(count)}) if total else []
    for _, batch in questions.batches():
        inside = [number - begin for number in chosen if begin <= number < begin + batch.num_rows]
        batches.append(batch.take(pa.array(inside, pa.int64())))
        begin += batch.num_rows
    if not chosen:
        raise DatasetError(f"{questions.source.name} is empty, so that nothing can be probed; give one with rows")
    return pa.Table.from_batches(batches)


def _prompts(run: ResolvedRun, questions: QuestionSet, size: ModelSize | None) -> Prompts:
    """Return the prompt lengths of at most MOST_TOKENIZED evenly spread questions, in every prompt variant."""
    step = max(1, len(questions) // MOST_TOKENIZED)
    some = [question for number, question in enumerate(questions.questions()) if number % step == 0]
    variants = list({arm.prompt_variant: arm for arm in run.arms}.values())
    limit = longest_sequence(run, size)
    count = _counter(run)
    lengths = sorted(count(prompt, arm) for q in some if (prompt := _askable(q)) for arm in variants)
    too_long = sum(length >= limit for length in lengths)
    report = count.report if isinstance(count, _Tokens) else PromptReport()
    return Prompts(lengths, len(lengths), too_long, limit, report, exact=not isinstance(count, _Guess))


def _askable(question: Question) -> Prompt | None:
    return None if question.fault else question.prompt


class _Guess:
    """Estimates tokens from characters, if the tokenizer is not on this machine."""

    def __call__(self, prompt: Prompt, arm: Arm) -> int:
        return (
            int(sum(len(message["content"]) for message in chat_messages(prompt, arm.system_prompt)) / CHARACTERS_PER_TOKEN)
            + 10
        )


class _Tokens:
    """Counts tokens as an engine does."""

    def __init__(self, run: ResolvedRun) -> None:
        self._encoder = load_encoder(run)
        self.report = report_prompts(self._encoder, run)

    def __call__(self, prompt: Prompt, arm: Arm) -> int:
        try:
            return len(self._encoder.encode(prompt, arm))
        except Refused:
            return 0  # it becomes an error row


def _counter(run: ResolvedRun) -> _Guess | _Tokens:
    there = any(os.path.exists(os.path.join(run.tokenizer_path, name)) for name in TOKENIZERS)
    return _Tokens(run) if there else _Guess()
