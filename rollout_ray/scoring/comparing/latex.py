r"""Plain mathematical notation (`sqrt(2)*x**2 <= 1`) written as the LaTeX that the symbolic comparison reads.

It also tells what would cost too much to evaluate. It evaluates nothing. Every regular expression is linear.
"""

from __future__ import annotations

import re

_FUNCTIONS = "arc(?:sin|cos|tan|cot|sec|csc)|(?:sin|cos|tan|cot|sec|csc)h?|ln|log|exp"
_FUNCTION = re.compile(rf"(?<![\\A-Za-z])({_FUNCTIONS})(?![A-Za-z])")
_CONSTANT = re.compile(r"(?<![\\A-Za-z])(pi|infinity|infty|inf)(?![A-Za-z])")
_CONSTANTS = {"pi": r"\pi ", "infinity": r"\infty ", "infty": r"\infty ", "inf": r"\infty "}
_OPENING = re.compile(r"(?:\^|(?<![\\A-Za-z])(?:sqrt|abs)|√)\s?\(")
_SIMPLE_POWER = re.compile(r"\^\s?(-?(?:\d{1,300}(?:\.\d{1,300})?|[A-Za-z](?![A-Za-z\d(])))")
_SIMPLE_ROOT = re.compile(r"√\s?(\d{1,30}|[a-z])")
_FACTOR = re.compile(r"(?<![\w.})/])(\d{1,30})/(\d{1,30})(?=\s?(?:[A-Za-z(]|\\[a-z]))")  # 1/2x is a half of x
# \cot t \cdot x is cot(t) x; without brackets the whole product would be the argument.
_ARGUMENT = re.compile(
    r"(\\(?:(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|ln|log)(?:\s?\^\s?\{?-?\d\}?)?)\s?"
    r"(\d{0,3}(?:[a-zA-Z](?![a-zA-Z(])|\\[a-z]{2,6}(?![a-z])))\s?(?=\\(?:cdot|times)(?![a-z]))"
)
_SIGN_PAIR = re.compile(r"\+\s?-(?=\s?[\d\\(a-zA-Z])")  # 14 + -1i
_DEGREES = re.compile(r"(?<!\d)(\d{1,30}(?:\.\d{1,30})?)\s?°(?![CF])")
_SIGNS = str.maketrans(
    {
        "≤": r"\le ",
        "≥": r"\ge ",
        "≠": r"\ne ",
        "÷": r"\div ",
        "×": r"\times ",
        "·": r"\cdot ",
        "π": r"\pi ",
        "∞": r"\infty ",
    }
    | {"∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ", "θ": r"\theta ", "≈": r"\approx "}
)


def to_latex(text: str) -> str:
    """Return the text with plain operators, powers, roots and functions as LaTeX. LaTeX stays as it is."""
    text = _SIGN_PAIR.sub(r"-", _DEGREES.sub(r"(\\frac{\1\\pi }{180})", text))
    text = _ARGUMENT.sub(r"\1(\2) ", text)
    text = text.replace("**", "^").replace("<=", r"\le ").replace(">=", r"\ge ").replace("!=", r"\ne ").translate(_SIGNS)
    text = _SIMPLE_POWER.sub(r"^{\1}", _SIMPLE_ROOT.sub(r"\\sqrt{\1}", text))
    text = _grouped(_FACTOR.sub(r"\\frac{\1}{\2}", text))
    text = _FUNCTION.sub(r"\\\1 ", text)
    return _CONSTANT.sub(lambda m: _CONSTANTS[m.group(1)], text)


def _grouped(text: str) -> str:
    """`^(...)`, `sqrt(...)` and `abs(...)` with the braces or bars of LaTeX."""
    chunks, closing = list(text), _closing_brackets(text)
    for match in _OPENING.finditer(text):
        start, end = match.start(), closing.get(match.end() - 1)
        if end is None:
            continue
        opened, closed = {"^": ("^{", "}"), "a": (r"\left|", r"\right|")}.get(text[start], (r"\sqrt{", "}"))
        chunks[start : match.end()] = [opened] + [""] * (match.end() - start - 1)
        chunks[end] = closed
    return "".join(chunks)


def _closing_brackets(text: str) -> dict[int, int]:
    """Return the position at which each round bracket closes, by the position at which it opens."""
    closing, opened = {}, []
    for position, char in enumerate(text):
        if char == "(":
            opened.append(position)
        elif char == ")" and opened:
            closing[opened.pop()] = position
    return closing


# A factorial of a factorial or power, or of more than four digits; (n-1)! and 2024! are evaluated.
_BIG_FACTORIAL = re.compile(r"!\s?!|(?:[!^]|\*\*|\d{5})[^()]{0,100}\)\s?!|\}\s?!|\]\s?!|\d{5}\s?!|!\s?[)}]{1,3}\s?!")
_BIG_POWER = re.compile(r"(?:\^|\*\*)\s?[({]*\s?-?\d{5}|[^\d\s]\s?(?:\^|\*\*)\s?[({]*\s?-?\d{4}")
_FACTORIAL_IN_POWER = re.compile(
    r"(?:\^|\*\*)\s?[({]{1,3}[^{}()]{0,100}!|\d\s?!\s?\)?\s?(?:\^|\*\*)\s?(?![2-9](?!\d)|\{[2-9]\})"
)
# A power in an exponent, the base of which is a number: 9^{9^9}, e^{e^{79}}; not e^{-x^2}.
_TOWER = re.compile(r"(?:\^|\*\*)\s?(?:[{(]{1,3}[^{}()]{0,100}|-?\d{0,30})(?:\d|(?<![A-Za-z])e|\\pi)\s?[)}]?\s?(?:\^|\*\*)")


def too_costly(text: str) -> bool:
    """Return whether evaluating a text could take unbounded time or memory.

    That is a power tower, a factorial of a factorial or of five digits, or a number of a hundred digits.
    """
    return bool(
        _BIG_FACTORIAL.search(text)
        or _FACTORIAL_IN_POWER.search(text)
        or _BIG_POWER.search(text)
        or _TOWER.search(text)
        or text.count("^") + text.count("**") > 24
        or text.count("!") > 8
        or re.search(r"\d{100}", text)
    )
