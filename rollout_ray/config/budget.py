"""Read a budget: how long a run may last, as a time or as money at a price an hour. The driver stops the run."""

from __future__ import annotations

import math
import re

_TIME = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def seconds_of(budget: str, price_per_hour: float | None = None) -> float:
    """Return the seconds that a budget allows.

    Args:
        budget: A time (`30m`, `2h`, `1h30m`, `90s`, or a bare number of minutes), or money (`$20`).
        price_per_hour: Dollars an hour for all machines of the run together.

    Raises:
        ValueError: The budget cannot be read, or allows nothing.
    """
    text = budget.strip().lower().replace(" ", "")
    if text.startswith("$") and _NUMBER.fullmatch(text[1:]):
        if not price_per_hour:
            raise ValueError(f"the budget {budget} is money and no price is known; give --price_per_hour too")
        seconds = 3600 * float(text[1:]) / price_per_hour
    elif _NUMBER.fullmatch(text):
        seconds = 60 * float(text)
    elif text and (time := _TIME.fullmatch(text)):
        seconds = sum(float(part or 0) * unit for part, unit in zip(time.groups(), (3600, 60, 1), strict=True))
    else:
        raise ValueError(f"'{budget}' is no budget; give a time such as 30m or 2h, or money such as $20")
    if not math.isfinite(seconds):
        raise ValueError(f"the budget {budget[:20]}... is too long to count; give less, or leave it out")
    if not seconds:
        raise ValueError(f"the budget {budget} allows nothing; give more than zero, or leave it out")
    return seconds
