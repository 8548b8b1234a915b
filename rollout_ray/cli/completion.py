"""Write shell completion for bash, zsh and fish: commands, their flags, and the values of flags that have few.

The scripts are made once, from the config's fields and the commands' parsers. They start no Python when Tab is pressed.
"""

from __future__ import annotations

import argparse
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rollout_ray.cli.parser import DESCRIBE, Described
from rollout_ray.config.arm_schema import Section
from rollout_ray.config.schema import RunConfig, leaf_fields
from rollout_ray.config.scoring_schema import ScoringConfig

SHELLS = ("bash", "zsh", "fish")
OWN_FLAGS = ("config", "quiet", "debug", "version", "help")
# Commands that take fields of the config, too.
MORE: dict[str, type[Section]] = {"plan": RunConfig, "rescore": ScoringConfig}

BASH = """_rollout() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} command=${{COMP_WORDS[1]}}
    local words="" flags="{flags}" kinds=""
    case "$command" in
{commands_cases}
    esac
    case "$prev" in
{values}
    esac
    if [[ -z "$words" && "$cur" == -* ]]; then words="$flags"
    elif [[ -z "$words" && $COMP_CWORD == 1 ]]; then words="{commands}"
    elif [[ -z "$words" && $COMP_CWORD == 2 ]]; then words="$kinds"; fi
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
complete -o default -F _rollout rollout"""

ZSH = """#compdef rollout
autoload -Uz bashcompinit && bashcompinit
"""


@dataclass
class Words:
    """What may follow a command.

    Attributes:
        flags: Flags without dashes, each with its values; empty for a flag that takes anything or nothing.
        meanings: Help of a flag.
        kinds: Words that may stand first.
    """

    flags: dict[str, tuple[str, ...]] = field(default_factory=dict)
    meanings: dict[str, str] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()


def script(shell: str, commands: Mapping[str, Callable[[list[str]], int]]) -> str:
    """Return the completion script of a shell, one of SHELLS."""
    run = _of_run()
    known = {name: _of_command(name, command, run) for name, command in sorted(commands.items())}
    if shell == "fish":
        return "\n".join(_fish(run, known))
    values = {flag: chosen for words in (run, *known.values()) for flag, chosen in words.flags.items() if chosen}
    cases = [f'        --{flag}) words="{" ".join(chosen)}" ;;' for flag, chosen in values.items()]
    commands_cases = [
        f'        {name}) flags="{_dashed(words)}"; kinds="{" ".join(words.kinds)}" ;;' for name, words in known.items()
    ]
    bash = BASH.format(
        values="\n".join(cases),
        commands_cases="\n".join(commands_cases),
        flags=_dashed(run),
        commands=" ".join(known),
    )
    return bash if shell == "bash" else ZSH + bash


def _dashed(words: Words) -> str:
    return " ".join(f"--{flag}" for flag in sorted(words.flags))


def _of_run() -> Words:
    fields = {name.rpartition(".")[2]: info for name, info in leaf_fields(RunConfig).items()}
    flags = {flag: _choices(info.annotation) for flag, info in fields.items()} | dict.fromkeys(OWN_FLAGS, ())
    return Words(flags, {flag: info.description or "" for flag, info in fields.items()})


def _of_command(name: str, command: Callable[[list[str]], int], run: Words) -> Words:
    """Return the words of a command, by its parser."""
    try:
        command([DESCRIBE])
    except Described as described:
        words = _of_parser(described.parser)
    else:
        raise AssertionError(f"rollout {name} does not parse its words with cli.parser.Parser")
    for dotted in leaf_fields(MORE[name]) if name in MORE else ():
        flag = dotted.rpartition(".")[2]
        words.flags.setdefault(flag, run.flags[flag])
    return words


def _of_parser(parser: argparse.ArgumentParser) -> Words:
    words = Words({"debug": ()})
    for action in parser._actions:
        choices = tuple(map(str, action.choices or ()))
        if not action.option_strings and choices and not words.kinds:
            words.kinds = choices
        for option in action.option_strings:
            if option.startswith("--"):
                words.flags[option[2:]] = choices
                words.meanings[option[2:]] = (action.help or "").replace("%(default)s", str(action.default))
        if isinstance(action, argparse._SubParsersAction):
            for inner in map(_of_parser, action.choices.values()):
                words.flags |= inner.flags
                words.meanings |= inner.meanings
    return words


def _fish(run: Words, known: Mapping[str, Words]) -> list[str]:
    """Return fish's lines. The flags of a run are offered where no other command stands."""
    names = " ".join(known)
    lines = [f"complete -c rollout -n __fish_use_subcommand -a '{names}'"]
    lines += [_fish_flag(flag, run, f"not __fish_seen_subcommand_from {names}") for flag in sorted(run.flags)]
    for name, words in known.items():
        seen = f"__fish_seen_subcommand_from {name}"
        if words.kinds:
            lines.append(f"complete -c rollout -n '{seen}' -a '{' '.join(words.kinds)}'")
        lines += [_fish_flag(flag, words, seen) for flag in sorted(words.flags)]
    return lines


def _fish_flag(flag: str, words: Words, condition: str) -> str:
    line = f"complete -c rollout -n '{condition}' -l {flag}"
    if meaning := words.meanings.get(flag):
        line += " -d " + "'" + meaning.replace("\\", "\\\\").replace("'", "\\'") + "'"
    if words.flags[flag]:
        return line + f" -x -a '{' '.join(words.flags[flag])}'"
    return line if flag in OWN_FLAGS else line + " -r"


def _choices(annotation: object) -> tuple[str, ...]:
    """Return the values of a field that has few: those of a Literal, and both words of a yes-or-no field."""
    if annotation is bool or bool in typing.get_args(annotation):
        return ("true", "false")
    return tuple(map(str, typing.get_args(annotation))) if typing.get_origin(annotation) is typing.Literal else ()
