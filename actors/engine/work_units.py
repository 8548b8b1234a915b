"""Track the chunks of an engine: which of their samples wait, which are done, and which can be returned.

It makes the keys by which a backend knows samples, and gathers completions into chunks.
It has no lock. engine.py, whose threads share it, holds one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from rollout_ray.actors.backend import Finished
from rollout_ray.core.records import ChunkKey, Completion, Cut, Generated, RolloutRequest
from rollout_ray.core.redaction import encodable


@dataclass(frozen=True, slots=True)
class Waiting:
    """A sample that the backend does not have yet. `number` is its index among the samples of a question."""

    key: str
    prompt: list[int]
    number: int
    question_id: str


@dataclass
class _Open:
    """A chunk in work: the prompts of its samples, in tokens, and the completions so far."""

    request: RolloutRequest
    prompts: Mapping[int, list[int]]
    completions: dict[int, Completion]


class ChunkTable:
    """All chunks of the present run.

    Attributes:
        run: Number of the run. Every key has it, so that samples of an earlier run are told apart.
        unfinished: Samples in work.
        finished: Samples that finished since the last `hand_over`.
        openings: For each sample, the tag of a thought that its prompt begins; empty for none.
        tokens: Whether the run stores token ids.
    """

    def __init__(self) -> None:
        self.run = self.unfinished = self.finished = 0
        self.openings: Sequence[str] = ()
        self.tokens = False
        self._inbox: deque[Waiting] = deque()
        self._open: dict[ChunkKey, _Open] = {}
        self._done: list[Generated] = []

    @property
    def waiting(self) -> int:
        """Samples that the backend does not have yet."""
        return len(self._inbox)

    @property
    def complete(self) -> int:
        """Chunks that are ready to be handed over."""
        return len(self._done)

    def partial(self) -> list[Generated]:
        """Return the finished samples of chunks that are not complete. The chunks stay in work."""
        return [
            Generated(opened.request, tuple(done for _, done in sorted(opened.completions.items())))
            for opened in self._open.values()
            if opened.completions
        ]

    def drop(self) -> list[Generated]:
        """End the run, whatever is in work. Return what finished and was not handed over, also of chunks in work."""
        finished = [*self._done, *self.partial()]
        self.run += 1
        self.unfinished = self.finished = 0
        self._inbox.clear()
        self._open.clear()
        self._done = []
        return finished

    def add(self, request: RolloutRequest, prompts: Mapping[int, list[int]], failed: Mapping[int, Completion]) -> None:
        """Take on a chunk: for each sample its prompt, or a completion if it failed already."""
        chunk = (request.ordinal, request.first)
        self._open[chunk] = _Open(request, prompts, dict(failed))
        for number, prompt in prompts.items():
            key = f"{self.run}.{request.ordinal}.{request.first}.{number}"
            self._inbox.append(Waiting(key, prompt, number, request.question.question_id))
        self.unfinished += len(prompts)
        self._close_if_complete(chunk)

    def take(self, most: int) -> list[Waiting]:
        """Return up to `most` samples to submit next."""
        return [self._inbox.popleft() for _ in range(min(most, len(self._inbox)))]

    def return_samples(self, wanted: int) -> tuple[Cut, ...]:
        """Take out up to `wanted` of the last samples that the backend does not have.

        The later samples of their chunks go with them.
        """
        return self.cut([self._inbox.pop().key for _ in range(min(wanted, len(self._inbox)))])

    def cut(self, last: Iterable[str]) -> tuple[Cut, ...]:
        """Take out the last samples in work, by their keys, the last one first."""
        cuts: dict[ChunkKey, int] = {}
        for key in last:
            _, chunk, number = _read(key)
            cuts[chunk] = number
            self.unfinished -= 1
        for chunk, cut in cuts.items():
            opened = self._open[chunk]
            if cut == opened.request.first:
                del self._open[chunk]
                continue
            opened.request = replace(opened.request, stop=cut)
            opened.completions = {number: done for number, done in opened.completions.items() if number < cut}
            self._close_if_complete(chunk)
        return tuple(cuts.items())

    def finish(self, one: Finished, engine: str, policy_version: int) -> None:
        """Record a sample that the backend has finished.

        It ignores samples of an earlier run. It only counts a sample that was returned before its text was read.
        """
        run, chunk, number = _read(one.key)
        if run != self.run:
            return
        opened = self._open.get(chunk)
        if opened is None or number >= opened.request.stop:
            self.unfinished -= 1
            return
        opened.completions[number] = Completion(
            sample_index=number,
            full_text=encodable(_from_its_tag(one, self.openings[number])),
            num_prompt_tokens=len(opened.prompts[number]),
            num_tokens=one.num_tokens,
            finish_reason=one.finish_reason,
            engine=engine,
            error=one.error,
            policy_version=policy_version,
            token_ids=one.token_ids,
            logprobs=one.logprobs,
            prompt_token_ids=opened.prompts[number] if self.tokens else None,
        )
        self.unfinished -= 1
        self.finished += 1
        self._close_if_complete(chunk)

    def hand_over(self) -> list[Generated]:
        """Return the complete chunks, and forget them."""
        done, self._done = self._done, []
        self.finished = 0
        return done

    def _close_if_complete(self, chunk: ChunkKey) -> None:
        opened = self._open[chunk]
        if len(opened.completions) == len(opened.request):
            del self._open[chunk]
            in_order = tuple(opened.completions[n] for n in range(opened.request.first, opened.request.stop))
            self._done.append(Generated(opened.request, in_order))


def _from_its_tag(one: Finished, opening: str) -> str:
    """Return the text, after the tag of a thought if the prompt began one and the output never ends it.

    Without the tag nobody could tell that the whole text is thought.
    """
    is_plain = not opening or one.finish_reason == "error" or "</think" in one.text
    return one.text if is_plain else opening + one.text


def _read(key: str) -> tuple[int, ChunkKey, int]:
    """Return the run, the chunk and the number of a sample's key."""
    run, ordinal, first, number = map(int, key.split("."))
    return run, (ordinal, first), number
