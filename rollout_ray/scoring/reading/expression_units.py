r"""Part a unit from the formula before it: `45 \sqrt{2} m^2`, `36\pi cm`.

Every regular expression is linear.
"""

from __future__ import annotations

import re

from rollout_ray.scoring.reading.units import read_unit

_CLOSING_WORDS = re.compile(
    r"(?<=[\d})π°i]) ([A-Za-z]{1,20}(?: [A-Za-z]{1,20}){0,2}(?: ?/ ?[A-Za-z]{1,10})?(?: ?\^ ?\{? ?[1-3] ?\}?)?)$"
)
_UNKNOWN = re.compile(r"(?<![\\A-Za-z])[A-Za-z](?![A-Za-z])")


def without_closing_unit(text: str) -> tuple[str, str]:
    """Return a formula without the unit that closes it, and the unit; a formula of unknown letters keeps its end."""
    match = _CLOSING_WORDS.search(text) or re.search(r"(?<=\\pi) ([A-Za-z]{1,20}(?: ?\^ ?\{? ?[1-3] ?\}?)?)$", text)
    if match is None or _UNKNOWN.search(text[: match.start()]):
        return text, ""
    unit = match.group(1)
    if len(unit) == 1 and unit not in "mLg":
        return text, ""
    value = text[: match.start()].rpartition("=")[2].strip()
    if not (re.search(r"[√π\\]", value) or value[-1:].isdigit()) or read_unit(unit) is None:
        return text, ""
    return value, unit
