"""Say what a config asks for and its user hardly wants: equal samples, or a line break that is no line break.

It refuses nothing, and knows no tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from rollout_ray.config.schema import RunConfig
from rollout_ray.core.records import Arm

# A backslash and an n or t, as a shell passes them on. A small letter behind them makes a LaTeX command, such as \nabla.
_UNREAD_ESCAPE = re.compile(r"\\[nt](?![a-z])")
_JINJA = re.compile(r"\{[{%#].*?[}%#]\}", re.DOTALL)


def notices(config: RunConfig, arms: Sequence[Arm]) -> list[str]:
    """Return one or two sentences for each, with the remedy."""
    return [*_equal_samples(arms), *_unread_escapes(config, arms)]


def _equal_samples(arms: Sequence[Arm]) -> Iterator[str]:
    """Yield a sentence for each reason why all samples of some arms are the same."""
    for reason, names in (
        ("temperature 0", [arm.name for arm in arms if arm.samples > 1 and arm.temperature == 0]),
        ("top_k 1", [arm.name for arm in arms if arm.samples > 1 and arm.temperature > 0 and arm.top_k == 1]),
    ):
        if names:
            which = f"arm {names[0]} has" if len(names) == 1 else f"arms {', '.join(names)} have"
            yield (
                f"the {which} {reason}, so that all samples of a question are the same text; raise it, or draw one sample "
                "with --n_samples 1"
            )


def _unread_escapes(config: RunConfig, arms: Sequence[Arm]) -> Iterator[str]:
    """Yield a sentence for each text that holds a backslash and an n where its author means a line break."""
    for text in dict.fromkeys(text for arm in arms for text in arm.stop if _UNREAD_ESCAPE.search(text)):
        yield (
            f"the stop string {text!r} holds a backslash and a letter, not a line break; in YAML write it in double "
            "quotes, as a flag write --stop '\\n'"
        )
    template = config.data.prompt_template
    if template is not None and _UNREAD_ESCAPE.search(_JINJA.sub("", template)):
        yield (
            "the prompt template holds a backslash and a letter where a line break may be meant; write the template into a "
            "file, or type $'...' in the shell"
        )
