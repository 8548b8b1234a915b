"""Generate arithmetic word problems in the style of GSM8K, with their worked steps.

The shipped demo model was trained on these problems. The same seed gives the same problems on every machine.
Prompts are rendered elsewhere, training targets in jobs/train_demo_model.py.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "test"]

_NAMES = "Anna Ben Carla David Elena Farid Grace Hugo Ines Jamal Kira Liam Maya Noah Olga Pedro Rosa Samir Tara Victor"
_THINGS = (
    "apples pencils stickers marbles books cookies shells stamps cards flowers buttons eggs clips balloons coins tickets"
)
NAMES = tuple(_NAMES.split())
THINGS = tuple(_THINGS.split())
FRACTIONS = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth"}
TIMES = {2: "twice", 3: "three times", 4: "four times", 5: "five times"}
OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a // b,
}


@dataclass(frozen=True)
class Step:
    """One calculation `left operator right = result`. `meaning` says what the result counts."""

    left: int
    operator: str
    right: int
    result: int
    meaning: str

    @property
    def equation(self) -> str:
        return f"{self.left} {self.operator} {self.right} = {self.result}"


@dataclass(frozen=True)
class Problem:
    """A question in words and the steps that solve it. The answer is the result of the last step."""

    question: str
    steps: tuple[Step, ...]

    @property
    def answer(self) -> str:
        return str(self.steps[-1].result)


class _Story:
    """Collects the sentences of one problem and the steps that solve it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.name, self.other = rng.sample(NAMES, 2)
        self.thing = rng.choice(THINGS)
        self.scale = rng.choice((1, 2, 5))  # small to large numbers, so that questions differ in difficulty
        self.sentences: list[str] = []
        self.steps: list[Step] = []

    def number(self, low: int, high: int) -> int:
        """Return a whole number from `low` to `high` times the scale of the story."""
        return self.rng.randint(low, high * self.scale)

    def say(self, *choices: str) -> None:
        self.sentences.append(self.rng.choice(choices))

    def step(self, left: int, operator: str, right: int, meaning: str) -> int:
        result = OPERATORS[operator](left, right)
        self.steps.append(Step(left, operator, right, result, meaning))
        return result

    def problem(self) -> Problem:
        return Problem(" ".join(self.sentences), tuple(self.steps))


def _month_sales(s: _Story) -> None:
    part = s.rng.choice(list(FRACTIONS))
    first = part * s.number(3, 40)
    s.say(f"{s.name} sold {first} {s.thing} in April, and then sold {FRACTIONS[part]} as many in May.")
    may = s.step(first, "/", part, f"{s.thing} in May")
    total = s.step(first, "+", may, f"{s.thing} in April and May")
    if s.rng.random() < 0.5:
        price = s.number(2, 9)
        s.say(f"Each one brought {price} dollars.", f"The price was {price} dollars each.")
        s.say(f"How many dollars did {s.name} earn in April and May?")
        s.step(total, "*", price, "dollars earned")
    else:
        s.say(f"How many {s.thing} did {s.name} sell altogether?")


def _gather_and_give(s: _Story) -> None:
    have = s.number(10, 90)
    s.say(f"{s.name} has {have} {s.thing}.", f"There are {have} {s.thing} in the box of {s.name}.")
    for _ in range(s.rng.randint(2, 3)):
        if have > 12 and s.rng.random() < 0.5:
            given = s.rng.randint(3, have - 5)
            s.say(f"{s.name} gives {given} to {s.other}.", f"Then {s.name} loses {given} of them.")
            have = s.step(have, "-", given, f"{s.thing} left")
        else:
            more = s.number(3, 60)
            s.say(f"{s.name} finds {more} more.", f"Then {s.other} brings {more} more {s.thing}.")
            have = s.step(have, "+", more, f"{s.thing} now")
    s.say(f"How many {s.thing} does {s.name} have now?", f"How many {s.thing} are there in the end?")


def _shopping(s: _Story) -> None:
    other_thing = s.rng.choice([t for t in THINGS if t != s.thing])
    count, price = s.number(2, 12), s.number(2, 12)
    other_count, other_price = s.number(2, 12), s.number(2, 12)
    s.say(f"{s.name} buys {count} {s.thing} for {price} dollars each.")
    s.say(f"{s.name} also buys {other_count} {other_thing} at {other_price} dollars each.")
    first = s.step(count, "*", price, f"dollars for the {s.thing}")
    second = s.step(other_count, "*", other_price, f"dollars for the {other_thing}")
    total = s.step(first, "+", second, "dollars in all")
    if s.rng.random() < 0.5:
        paid = total + s.number(3, 60)
        s.say(f"{s.name} pays with {paid} dollars.", f"{s.name} had {paid} dollars.")
        s.say("How many dollars are left?", f"How many dollars does {s.name} get back?")
        s.step(paid, "-", total, "dollars left")
    else:
        s.say(f"How many dollars does {s.name} spend?", "What is the total cost in dollars?")


def _comparison(s: _Story) -> None:
    base = s.number(4, 40)
    times = s.rng.choice(list(TIMES))
    more = s.number(2, 30)
    s.say(f"{s.name} has {base} {s.thing}.")
    if s.rng.random() < 0.5:
        s.say(f"{s.other} has {more} more than {TIMES[times]} as many.")
        product = s.step(base, "*", times, f"{s.thing} as {TIMES[times]} as many")
        other = s.step(product, "+", more, f"{s.thing} of {s.other}")
    else:
        s.say(f"{s.other} has {TIMES[times]} as many.")
        other = s.step(base, "*", times, f"{s.thing} of {s.other}")
    if s.rng.random() < 0.5:
        s.say(f"How many {s.thing} do they have together?")
        s.step(base, "+", other, f"{s.thing} together")
    else:
        s.say(f"How many more {s.thing} does {s.other} have than {s.name}?")
        s.step(other, "-", base, f"more {s.thing}")


def _work_week(s: _Story) -> None:
    wage = s.number(5, 25)
    hours = s.rng.randint(2, 9)
    days = s.number(2, 7)
    s.say(f"{s.name} earns {wage} dollars an hour and works {hours} hours a day.")
    daily = s.step(wage, "*", hours, "dollars a day")
    total = s.step(daily, "*", days, f"dollars in {days} days")
    if s.rng.random() < 0.5:
        spent = s.rng.randint(5, max(6, total - 5))
        s.say(f"After {days} days {s.name} spends {spent} dollars.")
        s.say("How many dollars are left?")
        s.step(total, "-", spent, "dollars left")
    else:
        s.say(f"How many dollars does {s.name} earn in {days} days?")


def _sharing(s: _Story) -> None:
    friends, each = s.rng.randint(2, 9), s.number(3, 25)
    total = friends * each
    bags = s.rng.choice([b for b in range(2, 10) if total % b == 0])
    s.say(f"{s.name} buys {bags} bags with {total // bags} {s.thing} in each bag.")
    s.say(f"{s.name} shares all of them equally among {friends} friends.")
    in_all = s.step(bags, "*", total // bags, f"{s.thing} in all")
    share = s.step(in_all, "/", friends, f"{s.thing} for each friend")
    if s.rng.random() < 0.6 and share > 3:
        eaten = s.rng.randint(1, share - 1)
        s.say(f"{s.other}, one of the friends, loses {eaten}.")
        s.say(f"How many {s.thing} does {s.other} have left?")
        s.step(share, "-", eaten, f"{s.thing} left")
    else:
        s.say(f"How many {s.thing} does each friend get?")


def _reading(s: _Story) -> None:
    daily, days = s.number(4, 30), s.number(2, 8)
    pages = daily * days + 2 * s.number(3, 60)
    s.say(f"{s.name} is reading a book of {pages} pages and reads {daily} pages a day for {days} days.")
    read = s.step(daily, "*", days, f"pages in {days} days")
    left = s.step(pages, "-", read, "pages left")
    if left % 2 == 0 and s.rng.random() < 0.6:
        s.say(f"Then {s.name} reads half of the pages that are left.", "Half of the rest is for tomorrow.")
        s.say("How many pages is that?")
        s.step(left, "/", 2, "pages in that half")
    else:
        s.say("How many pages are left?")


def _boxes_and_broken(s: _Story) -> None:
    boxes, per_box = s.number(3, 15), s.number(4, 20)
    broken = s.rng.randint(2, max(3, boxes * per_box // 3))
    price = s.number(2, 6)
    s.say(f"A shop has {boxes} boxes of {per_box} {s.thing}.", f"{boxes} boxes hold {per_box} {s.thing} each.")
    s.say(f"{broken} of them are damaged.", f"{s.name} takes {broken} of them away.")
    s.say(f"The rest are sold at {price} dollars each. How many dollars is that?")
    whole = s.step(boxes, "*", per_box, f"{s.thing} in the boxes")
    rest = s.step(whole, "-", broken, f"{s.thing} to sell")
    s.step(rest, "*", price, "dollars")


FAMILIES: tuple[Callable[[_Story], None], ...] = (
    _month_sales,
    _gather_and_give,
    _shopping,
    _comparison,
    _work_week,
    _sharing,
    _reading,
    _boxes_and_broken,
)


def generate_problems(seed: int, split: Split) -> Iterator[Problem]:
    """Yield problems without end. The sequence depends only on the arguments.

    A hash of the question decides between `train` and `test`, so the demo model has seen no test question.
    """
    rng = random.Random(seed)
    while True:
        story = _Story(rng)
        rng.choice(FAMILIES)(story)
        problem = story.problem()
        if (zlib.crc32(problem.question.encode()) % 10 == 0) == (split == "test"):
            yield problem
