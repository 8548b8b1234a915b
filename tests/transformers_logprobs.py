"""Log-probabilities of given tokens by transformers in float32, after the same sampling parameters as vLLM's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


@dataclass(frozen=True)
class Sampling:
    """Parameters of the distribution that tokens are drawn from."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0


class Reference:
    """The model that the log-probabilities are compared with."""

    def __init__(self, folder: str) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def logprobs(self, prompt: Sequence[int], tokens: Sequence[int], sampling: Sampling | None) -> list[float]:
        """Return the log-probability of each token. `sampling` None: under the model's own distribution."""
        whole = torch.tensor([[*prompt, *tokens]])
        logits = self._model(whole).logits[0, len(prompt) - 1 : -1].float()
        if sampling is not None:
            rows = [_processed(row, whole[:, : len(prompt) + n], len(prompt), sampling) for n, row in enumerate(logits)]
            logits = torch.stack(rows)
        chosen = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])
        return [float(value) for value in chosen[:, 0]]


def _processed(row: Any, before: Any, prompt: int, sampling: Sampling) -> Any:
    """Return one row of logits after the processors, in vLLM's order. At temperature 0 nothing is cut off."""
    scores = row[None]
    if sampling.repetition_penalty != 1.0:
        scores = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(before, scores)
    counts = torch.zeros_like(scores).scatter_add_(1, before[:, prompt:], torch.ones_like(scores))
    scores = scores - sampling.frequency_penalty * counts - sampling.presence_penalty * (counts > 0)
    if sampling.temperature == 0:
        return scores[0]
    scores = scores / sampling.temperature
    if sampling.top_k > 0:
        scores = TopKLogitsWarper(sampling.top_k)(before, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(before, scores)
    return scores[0]
