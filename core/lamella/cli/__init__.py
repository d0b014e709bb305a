"""The command line: ``lamella``, its own commands, and those that plugins give."""

from lamella.cli.program import OWN, main
from lamella.commands import Command

__all__ = ["OWN", "Command", "main"]
