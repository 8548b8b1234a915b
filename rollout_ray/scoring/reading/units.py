"""Read units with their dimension and scale from pint, and dates and clock times.

pint loads when the first unit is read, never for plain numbers. It knows no counted nouns (quantity.py).
"""

from __future__ import annotations

import calendar
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any

_PHRASE = re.compile(r"[A-Za-z°µμ]{1,20}(?:[ ./*^{}()\d-]{1,6}[A-Za-z°µμ]{1,20}){0,4}(?: ?\^ ?\{? ?-?[1-3] ?\}?)?")
_SYMBOLS = {"$": "dollar", "€": "euro", "£": "pound_sterling", "¥": "yen", "₹": "rupee"}
_MONEY = (
    "dollar = [money] = _ = buck = USD = dollars = bucks",
    "cent = dollar / 100 = _ = cents",
    "euro = [money_of_europe] = _ = EUR = euros",
    "pound_sterling = [money_of_britain] = _ = GBP",
    "yen = [money_of_japan] = _ = JPY",
    "rupee = [money_of_india] = _ = INR = rupees",
)
_NO_UNIT = frozenset(("unit", "units", "square units", "cubic units", "sq units", "units^2", "units^3", "unit^2"))
_NOT_MEASURED = frozenset(("am", "pm", "a.m", "p.m", "e", "pi", "i", "th", "st", "nd", "rd", "x", "y", "z", "k", "points"))


@dataclass(frozen=True, slots=True)
class Unit:
    """A dimension, and how many of its base units one of this unit is; `offset` where its zero is another's not."""

    dimension: str
    scale: Fraction
    offset: bool = False


@lru_cache(maxsize=4096)
def read_unit(phrase: str) -> Unit | None:
    """Return the unit that a phrase names, such as `km/h` or `square feet`. Return None if it names none.

    `units`, which measures nothing, has an empty dimension and scale 0.
    """
    phrase = " ".join(phrase.strip(" .").split())
    if phrase.casefold() in _NO_UNIT:
        return Unit("", Fraction(0))
    if phrase.casefold() in _NOT_MEASURED or not _PHRASE.fullmatch(phrase) or re.search(r"\d{2}", phrase):
        return None
    spelled = re.sub(r"(?<=[a-z]) (?=[a-zA-Z])", "*", _pint_spelling(phrase))
    return _from_pint(spelled) or (_from_pint(spelled.lower()) if len(phrase) > 1 else None)


def _pint_spelling(phrase: str) -> str:
    phrase = re.sub(r"\bper\b|\ban? hour\b", "/", phrase).replace("^", "**").translate({123: None, 125: None})
    phrase = re.sub(r"\b(?:square|sq\.?) ([A-Za-z]{1,20})", r"\1**2", phrase)
    phrase = re.sub(r"\b(?:cubic|cu\.?) ([A-Za-z]{1,20})", r"\1**3", phrase)
    phrase = re.sub(r"([A-Za-z]{1,20}) (?:squared)\b", r"\1**2", phrase)
    return re.sub(r" ?(/|\*\*) ?", r"\1", phrase).replace("°C", "degC").replace("°F", "degF").replace("°", "degree")


def _from_pint(spelled: str) -> Unit | None:
    try:
        unit = _registry().Quantity(Decimal(1), _registry().parse_units(spelled)).units
        dimension = str(unit.dimensionality)
        if dimension == "dimensionless":
            return Unit("angle", Fraction(1)) if "degree" in str(unit) else Unit(f"number: {unit}", Fraction(1))
        if any(name in str(unit) for name in ("degree_Celsius", "degree_Fahrenheit")):
            return Unit(f"temperature: {unit}", Fraction(1), offset=True)
        scale = _registry().Quantity(Decimal(1), unit).to_root_units().magnitude
        return Unit(dimension, Fraction(scale))
    except Exception:  # noqa: BLE001  (pint raises anything on a phrase that is no unit)
        return None


@lru_cache(maxsize=1)
def _registry() -> Any:
    import pint

    registry: Any = pint.UnitRegistry(non_int_type=Decimal)
    for definition in _MONEY:
        registry.define(definition)
    return registry


def currency(symbol: str) -> str:
    """Return the unit of a currency symbol."""
    return _SYMBOLS[symbol]


_MONTH = (
    r"(Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
    r"|Nov(?:ember)?|Dec(?:ember)?)"
)
DATE = re.compile(
    rf"(?<![A-Za-z\d])(?:{_MONTH}\.? (\d{{1,4}})(?:st|nd|rd|th)?|(\d{{1,2}})(?:st|nd|rd|th)?(?: of)? {_MONTH})"
    r"(?:,? (\d{4}))?(?=[.,;)]|$)"
)
_CLOCK = re.compile(r"(?:at )?(\d{1,2})(:\d{2}(?::\d{2})?)? ?([ap])\.? ?m\.?", re.IGNORECASE)


def date(text: str) -> str | None:
    """Return a date in one spelling, `20th of June` as June 20. Return None for any other text."""
    if not (match := DATE.fullmatch(text)):
        return None
    month, day, day_first, month_last, year = match.groups()
    name = next(name for name in calendar.month_name[1:] if name.startswith((month or month_last)[:3]))
    return f"{name} {int(day or day_first)}" + (f", {year}" if year else "")


def clock(text: str) -> str | None:
    """Return a time of day with am or pm in one spelling, `10 a.m.` as 10:00 am. Return None for any other text."""
    if not (match := _CLOCK.fullmatch(text)):
        return None
    return f"{int(match.group(1))}{match.group(2) or ':00'} {match.group(3).lower()}m"
