"""Define the parser of every command: it raises ConfigError, and shows itself to the shell's completion."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from rollout_ray.core.errors import ConfigError

DESCRIBE = "\0describe"  # the word by which a command is asked for its parser


class Described(Exception):
    """Carries the parser of a command that was asked for it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__(parser.prog)
        self.parser = parser


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises ConfigError."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if args == [DESCRIBE]:
            raise Described(self)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        from rollout_ray.config.help import plain

        raise ConfigError(f"{plain(message)}; see {self.prog} --help")
