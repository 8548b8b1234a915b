"""The pieces that an engine has in work: which of their draws wait, which are done, and which can be given back.

Owns the keys by which a backend knows draws, and gathers completions into pieces. It has no lock: engine.py, whose threads
share it, holds one.
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
    """A draw that the backend does not have yet. `number` is the draw's own."""

    key: str
    prompt: list[int]
    number: int
    question_id: str


@dataclass
class _Open:
    """A piece in work: the prompts of its draws, in tokens, and the completions that are there."""

    request: RolloutRequest
    prompts: Mapping[int, list[int]]
    completions: dict[int, Completion]


class ChunkTable:
    """All pieces of the present run. `run` counts the runs and is part of every key, so that what an earlier run left is
    told apart; `unfinished` counts draws, and so does `finished`, since the last `hand_over`. `openings` has, for each
    draw, the tag of a thought that its prompt begins."""

    def __init__(self) -> None:
        self.run = self.unfinished = self.finished = 0
        self.openings: Sequence[str] = ()
        self._inbox: deque[Waiting] = deque()
        self._open: dict[ChunkKey, _Open] = {}
        self._done: list[Generated] = []

    @property
    def waiting(self) -> int:
        """Draws that the backend does not have yet."""
        return len(self._inbox)

    @property
    def complete(self) -> int:
        """Pieces to be handed over."""
        return len(self._done)

    def drop(self) -> None:
        """Ends the run, whatever is in work."""
        self.run += 1
        self.unfinished = self.finished = 0
        self._inbox.clear()
        self._open.clear()
        self._done = []

    def add(self, request: RolloutRequest, prompts: Mapping[int, list[int]], failed: Mapping[int, Completion]) -> None:
        """Takes on a piece: the prompt of each draw, or what became of it already."""
        chunk = (request.ordinal, request.first)
        self._open[chunk] = _Open(request, prompts, dict(failed))
        for number, prompt in prompts.items():
            key = f"{self.run}.{request.ordinal}.{request.first}.{number}"
            self._inbox.append(Waiting(key, prompt, number, request.question.question_id))
        self.unfinished += len(prompts)
        self._close_if_complete(chunk)

    def take(self, most: int) -> list[Waiting]:
        """The next draws for the backend."""
        return [self._inbox.popleft() for _ in range(min(most, len(self._inbox)))]

    def return_samples(self, wanted: int) -> tuple[Cut, ...]:
        """Takes out again up to `wanted` of the last draws that the backend does not have, and with them what stands behind
        them in their pieces."""
        return self.cut([self._inbox.pop().key for _ in range(min(wanted, len(self._inbox)))])

    def cut(self, last: Iterable[str]) -> tuple[Cut, ...]:
        """Takes out the last draws of those that are in work, the last one first."""
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
        """Notes a draw that the backend has done with. One of an earlier run is passed over, and one that was given back
        with an earlier draw of its piece while it had no text yet."""
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
        )
        self.unfinished -= 1
        self.finished += 1
        self._close_if_complete(chunk)

    def hand_over(self) -> list[Generated]:
        """The complete pieces, which are forgotten here."""
        done, self._done, self.finished = self._done, [], 0
        return done

    def _close_if_complete(self, chunk: ChunkKey) -> None:
        opened = self._open[chunk]
        if len(opened.completions) == len(opened.request):
            del self._open[chunk]
            in_order = tuple(opened.completions[n] for n in range(opened.request.first, opened.request.stop))
            self._done.append(Generated(opened.request, in_order))


def _from_its_tag(one: Finished, opening: str) -> str:
    """The text, and before it the tag of a thought that the prompt began and the output never ended: else nobody could tell
    that all of it is thought."""
    is_plain = not opening or one.finish_reason == "error" or "</think" in one.text
    return one.text if is_plain else opening + one.text


def _read(key: str) -> tuple[int, ChunkKey, int]:
    """The run, the piece and the number of a draw."""
    run, ordinal, first, number = map(int, key.split("."))
    return run, (ordinal, first), number
