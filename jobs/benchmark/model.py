"""Make a model folder for benchmarks: a Mistral's shape and a trained tokenizer, without weights.

    python -m rollout_ray.jobs.benchmark.model OUT --questions gsm8k.parquet        # a 7B; run it with load_format dummy
    python -m rollout_ray.jobs.benchmark.model OUT --questions gsm8k.parquet --shape tiny

vLLM's load_format 'dummy' makes the weights. Such a model writes noise, so benchmarks fix the output lengths.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<s>", "</s>", "<pad>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """Sizes in a Mistral's config.json, under the same names."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    head_dim: int
    max_position_embeddings: int = 32768


SHAPES = {
    "7b": Shape(4096, 14336, 32, 32, 8, 32000, 128),
    "tiny": Shape(128, 256, 2, 4, 2, 4000, 32),
}


def make_model(folder: Path, questions: Path, shape: Shape) -> int:
    """Write config.json and the tokenizer's files.

    Args:
        questions: Parquet whose string columns train the tokenizer.

    Returns:
        Number of learned tokens in the vocabulary.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        **asdict(shape),
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": False,
        "sliding_window": None,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tokenizer = _train(questions, shape.vocab_size)
    learned: int = tokenizer.get_vocab_size()
    # Random weights produce every token id, so every id needs a text.
    tokenizer.add_tokens([f"<unused{i}>" for i in range(shape.vocab_size - learned)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return learned


def _train(questions: Path, vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer with at most `vocab_size` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_texts(pq.read_table(questions)), trainer)
    return tokenizer


def _texts(table: pa.Table) -> Iterator[str]:
    for column in table.schema:
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            yield from filter(None, table.column(column.name).to_pylist())


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rollout_ray.jobs.benchmark.model", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--questions", type=Path, required=True, help="parquet whose texts train the tokenizer")
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    learned = make_model(args.folder, args.questions, shape)
    print(f"{args.folder}: {args.shape}, {shape.vocab_size} tokens, {learned} of them learned")


if __name__ == "__main__":
    main()
