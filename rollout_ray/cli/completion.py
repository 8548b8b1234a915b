"""Shell completion for bash, zsh and fish: commands, every flag of a run, and the values of those that have few.

Owns the three scripts. They are made from the config's fields once and start no Python when Tab is pressed.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence

from rollout_ray.config.schema import RunConfig, leaf_fields

SHELLS = ("bash", "zsh", "fish")
OWN_FLAGS = ("config", "quiet", "debug", "help")

BASH = """_rollout() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} words=""
    case "$prev" in
{values}
    esac
    if [[ -z "$words" && "$cur" == -* ]]; then words="{flags}"
    elif [[ -z "$words" && $COMP_CWORD == 1 ]]; then words="{commands}"; fi
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
complete -o default -F _rollout rollout"""

ZSH = """#compdef rollout
autoload -Uz bashcompinit && bashcompinit
"""


def script(shell: str, commands: Sequence[str]) -> str:
    """The completion script of a shell, one of SHELLS."""
    fields = {name.rpartition(".")[2]: info for name, info in leaf_fields(RunConfig).items()}
    values = {flag: chosen for flag, info in fields.items() if (chosen := _choices(info.annotation))}
    flags = sorted([*fields, *OWN_FLAGS])
    if shell == "fish":
        return "\n".join(_fish(commands, flags, values, {flag: info.description or "" for flag, info in fields.items()}))
    cases = "\n".join(f'        --{flag}) words="{" ".join(chosen)}" ;;' for flag, chosen in values.items())
    bash = BASH.format(values=cases, flags=" ".join(f"--{flag}" for flag in flags), commands=" ".join(commands))
    return bash if shell == "bash" else ZSH + bash


def _fish(
    commands: Sequence[str], flags: Sequence[str], values: dict[str, tuple[str, ...]], meanings: dict[str, str]
) -> list[str]:
    lines = [f"complete -c rollout -n __fish_use_subcommand -a '{' '.join(commands)}'"]
    for flag in flags:
        line = f"complete -c rollout -l {flag}"
        if meaning := meanings.get(flag):
            line += " -d " + "'" + meaning.replace("\\", "\\\\").replace("'", "\\'") + "'"
        if flag in values:
            line += f" -x -a '{' '.join(values[flag])}'"
        elif flag not in OWN_FLAGS:
            line += " -r"
        lines.append(line)
    return lines


def _choices(annotation: object) -> tuple[str, ...]:
    """The values of a field that has few: those of a Literal, and for a yes-or-no field both words."""
    if annotation is bool or bool in typing.get_args(annotation):
        return ("true", "false")
    return tuple(map(str, typing.get_args(annotation))) if typing.get_origin(annotation) is typing.Literal else ()
