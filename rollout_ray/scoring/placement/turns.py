"""Cut a model's output to its own turn: thoughts, special tokens, and run-ons into another problem.

It finds no answer (extraction.py). Every regular expression is linear in the text.
"""

from __future__ import annotations

import re

from rollout_ray.scoring.placement.markers import MARKER

_THINK = re.compile(r"</?think(?:ing)?>", re.IGNORECASE)
_RUN_ON = re.compile(
    r"^[ \t#*]*(?:(?P<problem>Problem|Question)(?: \d{1,4})?[*]*:|Q:|Human:|User:|Student:"
    r"|### ?(?:Instruction|Response|Input|Problem|Question)\b|\[INST\])"
    r"|<\|(?:im_end|im_start|eot_id|endoftext|end|user|start_header_id)\|>|</s>|<end_of_turn>",
    re.MULTILINE,
)
# A step's label, which is no number of the solution, or what shows that the model has begun to answer.
_LABEL_OR_BEGUN = re.compile(
    rf"^[ \t#*]{{0,9}}(?P<label>Step \d{{1,3}}\b|\d{{1,3}}[.)](?=[ \t*]{{1,5}}\S))|{MARKER.pattern}|\d",
    re.IGNORECASE | re.MULTILINE,
)
_BOXED = re.compile(r"\\(?:boxed|fbox)[ ]?\{")


def without_run_on(text: str) -> str:
    """Cut where the model, having answered, starts another problem or turn. A restatement at the start is no run-on.

    A question that the solution asks itself is none either: the answer in a box comes only after it.
    """
    begun = next((found for found in _LABEL_OR_BEGUN.finditer(text) if not found["label"]), None)
    header = _RUN_ON.search(text, begun.end()) if begun else None
    if header is None:
        return text
    if header["problem"] == "Question" and not MARKER.search(text, 0, header.start()):
        marker = MARKER.search(text, header.end())
        if marker and _BOXED.match(marker.group()):
            return text
    return text[: header.start()]


def after_thoughts(text: str) -> str:
    """Return the text after the last closed thought, a suffix; nothing where the last thought is never closed."""
    tags = list(_THINK.finditer(text))
    if not tags:
        return text
    last = tags[-1]
    return text[last.end() :] if last.group().startswith("</") else ""


def without_thought_tags(text: str) -> str:
    return _THINK.sub("", text) if "<" in text else text
