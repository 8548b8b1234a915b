"""Train the small model in the package, so that a first run has real text and real rewards without a download.

All training problems and solutions are generated. The same arguments give the same model, up to the device's rounding.

    python -m rollout_ray.jobs.train_demo_model --out rollout_ray/demo_model      # 6 minutes on an H200, hours on a CPU
"""

from __future__ import annotations

import argparse
import itertools
import logging
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rollout_ray.config import arms
from rollout_ray.config.arm_schema import ArmConfig
from rollout_ray.data.demo_questions import OPERATORS, Problem, Step, generate_problems
from rollout_ray.scoring.extraction import extract_answer

log = logging.getLogger("train_demo_model")

PAD = "<|pad|>"
SYSTEM = "<|system|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
END = "<|end|>"
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# The weight of each system prompt in training.
STYLES: dict[str | None, int] = {
    arms.WOLFRAM: 35,
    arms.MAUDLIN: 35,
    arms.WOLFRAM_REPHRASE: 8,
    arms.MAUDLIN_CF1: 10,
    None: 12,
}
SLIP_RATE = 0.25
INVERSE = {"+": "-", "-": "+", "*": "/", "/": "*"}
FRAGILITY = {
    "+": ("a carry is easily lost", "it is easy to add the wrong pair"),
    "-": ("a borrow is easily lost", "the order of the two numbers matters"),
    "*": ("one row of the product is easily dropped", "adding instead of multiplying would be wrong"),
    "/": ("the share is easily taken for the whole", "multiplying instead of dividing would be wrong"),
}


def _with_slips(problem: Problem, rng: random.Random) -> tuple[list[Step], list[bool]]:
    """Return the steps of a hasty pupil, and which of them slipped: one in four large results loses a carry.

    Without slips, so small a model answers a question equally well at every temperature. With them, a hot arm slips more
    often than a cold one. Later steps go on with the wrong value.
    """
    steps: list[Step] = []
    slips: list[bool] = []
    wrong: dict[int, int] = {}  # right result -> the result that later steps use
    for number, step in enumerate(problem.steps):
        left, right = wrong.get(step.left, step.left), wrong.get(step.right, step.right)
        result = OPERATORS[step.operator](left, right)
        divided_later = any(later.operator == "/" for later in problem.steps[number + 1 :])
        slipped = result >= 100 and not divided_later and rng.random() < SLIP_RATE
        if slipped or result != step.result:
            result -= 10 if slipped else 0
            wrong[step.result] = result
        steps.append(Step(left, step.operator, right, result, step.meaning))
        slips.append(slipped)
    return steps, slips


def _checked_step(step: Step, slipped: bool, rng: random.Random) -> str:
    """Return a step in the reflective style: what it counts, where it may slip, and the inverse calculation as a check.

    A step that slipped has no check.
    """
    opening = rng.choice((f"I look for the {step.meaning}: ", f"Next come the {step.meaning}: ", f"The {step.meaning}: "))
    check = f"{step.result} {INVERSE[step.operator]} {step.right} = {step.left}"
    if slipped or rng.random() < 0.3:
        return f"{opening}{step.equation}."
    fragile = rng.choice(FRAGILITY[step.operator])
    return f"{opening}{step.equation}. " + rng.choice(
        (f"This step is fragile, {fragile}. Check: {check}.", f"Here {fragile}, so I check: {check}.")
    )


def solution(problem: Problem, system_prompt: str | None, rng: random.Random) -> str:
    """Return a solution with slips in the style of `system_prompt`. It ends in `Answer: <number>`."""
    steps, slips = _with_slips(problem, rng)
    last = f"Answer: {steps[-1].result}"
    if system_prompt in (arms.MAUDLIN, arms.MAUDLIN_CF1):
        lines = [_checked_step(step, slipped, rng) for step, slipped in zip(steps, slips, strict=True)]
        if system_prompt == arms.MAUDLIN_CF1:
            lines.insert(0, "My first instinct may be wrong, and the trap is to skip a step.")
        return "\n".join([*lines, last])
    numbered = [f"Step {i}: {step.equation} {step.meaning}." for i, step in enumerate(steps, 1)]
    if system_prompt == arms.WOLFRAM_REPHRASE:
        asked = problem.question.rpartition(". ")[2]
        numbered.insert(0, f"In other words: {asked}")
    return "\n".join([*numbered, last])


def examples(count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Yield `count` pairs of prompt and solution, with chat markers."""
    rng = random.Random(seed)
    prompts = list(STYLES)
    weights = list(STYLES.values())
    for problem in itertools.islice(generate_problems(seed, "train"), count):
        style = rng.choices(prompts, weights)[0]
        system = f"{SYSTEM}{style}{END}" if style else ""
        yield f"{system}{USER}{problem.question}{END}{ASSISTANT}", f"{solution(problem, style, rng)}{END}"


def train_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE of the training text. Each digit is a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, SYSTEM, USER, ASSISTANT, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator((prompt + text for prompt, text in examples(20_000, seed=1)), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(tokenizer: PreTrainedTokenizerFast, layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def batches(
    tokenizer: PreTrainedTokenizerFast, count: int, seed: int, batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (input_ids, labels) without end, both int64 [batch, length]. A label is -100 on prompt and padding.

    Each epoch has the same examples in another order. A batch holds examples of similar length.
    """
    prompts, texts = zip(*examples(count, seed), strict=True)
    prompt_ids = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    text_ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    rows = [np.array(p + t, dtype=np.int64) for p, t in zip(prompt_ids, text_ids, strict=True)]
    starts = [len(p) for p in prompt_ids]
    rng = np.random.default_rng(seed)
    log.info("%d examples, %.0f tokens each", count, np.mean([len(r) for r in rows]))
    while True:
        jitter = np.array([len(r) for r in rows]) + rng.integers(0, 12, count)
        order = np.argsort(jitter, kind="stable")
        chunks = [order[i : i + batch_size] for i in range(0, count - batch_size + 1, batch_size)]
        for pick in rng.permutation(len(chunks)):
            chunk = chunks[pick]
            length = max(len(rows[i]) for i in chunk)
            ids = np.full((len(chunk), length), tokenizer.pad_token_id, dtype=np.int64)
            labels = np.full_like(ids, -100)
            for line, i in enumerate(chunk):
                ids[line, : len(rows[i])] = rows[i]
                labels[line, starts[i] : len(rows[i])] = rows[i][starts[i] :]
            yield torch.from_numpy(ids), torch.from_numpy(labels)


def train(model: LlamaForCausalLM, data: Iterator[tuple[torch.Tensor, torch.Tensor]], steps: int, device: str) -> None:
    """Train the model in place: AdamW with warm-up and a cosine to zero, bfloat16 autocast."""
    peak, warmup = 2e-3, min(300, steps // 5)
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=warmup),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - warmup)),
        ],
        [warmup],
    )
    began = time.perf_counter()
    for number, (ids, labels) in zip(range(1, steps + 1), data, strict=False):
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            loss = model(input_ids=ids.to(device), labels=labels.to(device)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if number % 500 == 0 or number == steps:
            log.info("step %d loss %.4f, %.0f s", number, loss.item(), time.perf_counter() - began)


@torch.inference_mode()  # type: ignore[untyped-decorator]
def accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, arm: ArmConfig, problems: list[Problem]) -> float:
    """Return the share of the problems that the model answers correctly under one arm, in [0, 1]."""
    model.eval()
    tokenizer.padding_side = "left"
    chats = [arms.chat_messages(p.question, arm.system_prompt) for p in problems]
    texts = [tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
    inputs.pop("token_type_ids", None)
    output = model.generate(
        **inputs, do_sample=True, temperature=arm.temperature, top_p=arm.top_p, top_k=0, max_new_tokens=400
    )
    answers = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return sum(_says(text, p.answer) for text, p in zip(answers, problems, strict=True)) / len(problems)


def _says(text: str, gold: str) -> bool:
    answer = extract_answer(text).answer
    return answer is not None and answer.text == gold


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and its tokenizer")
    parser.add_argument("--steps", type=int, default=5000, help="optimizer steps")
    parser.add_argument("--examples", type=int, default=800_000, help="distinct training problems")
    parser.add_argument("--batch-size", type=int, default=256, help="examples a step")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--vocab-size", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--eval", type=int, default=400, help="unseen problems to grade afterwards")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(args.seed)
    tokenizer = train_tokenizer(args.vocab_size)
    model = build_model(tokenizer, args.layers)
    log.info("%d parameters, %d tokens, on %s", model.num_parameters(), len(tokenizer), args.device)
    train(model, batches(tokenizer, args.examples, args.seed + 100, args.batch_size), args.steps, args.device)
    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    unseen = list(itertools.islice(generate_problems(7, "test"), args.eval))
    for arm in arms.PRESETS["regime-w"]:
        log.info("%s, T %.1f: %.1f%% right", arm.name, arm.temperature, 100 * accuracy(model, tokenizer, arm, unseen))


if __name__ == "__main__":
    main()
