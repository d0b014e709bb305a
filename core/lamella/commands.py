"""What a command of the command line is; plugins give others through ``lamella_commands``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lamella import registry
from lamella.errors import ArgumentError

if TYPE_CHECKING:
    import argparse  # `import lamella` does without

__all__ = ["COMMANDS", "OWN", "Command"]


class Command:
    """A command: its line of help, what adds its arguments, and what runs it and returns the exit status."""

    def __init__(
        self,
        help: str,
        configure: Callable[[argparse.ArgumentParser], None],
        run: Callable[[argparse.Namespace], int],
    ) -> None:
        if not isinstance(help, str) or not callable(configure) or not callable(run):
            raise ArgumentError(
                f"Command: expected a line of help and two functions, got {help!r}, {configure!r}, {run!r}"
            )
        self.help, self.configure, self.run = help, configure, run


COMMANDS = registry.Kind("commands", "lamella.cli.Command", of=Command)

OWN: dict[str, Command] = {}
"""The commands of lamella itself, which `lamella.cli` puts here; plugins give others."""
