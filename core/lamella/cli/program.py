"""The program ``lamella``: finds the command that is asked for, runs it, and tells what the user can mend."""

from __future__ import annotations

import argparse
import io
import os
import platform
import sys
from collections.abc import Sequence

from lamella import errors, registry
from lamella.cli import check, inspect, layers, listing, new_plugin
from lamella.commands import COMMANDS, OWN, Command
from lamella.registry import shortest_names
from lamella.terminal import aside
from lamella.version import __version__

__all__ = ["OWN", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``lamella`` and return its exit status: 2, and a message without a traceback, for what the user can mend."""
    _mend_streams()
    stream = sys.stdout
    try:
        status = _run(sys.argv[1:] if arguments is None else list(arguments))
        stream.flush()
        return status
    except errors.LamellaError as error:
        message = str(error)
    except BrokenPipeError:  # whoever reads, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 141
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except ModuleNotFoundError as error:
        if (error.name or "lamella").startswith("lamella"):
            raise
        message = f"{error}; try: python -m pip install {error.name}"
    except KeyboardInterrupt:
        print("\nlamella: interrupted", file=sys.stderr)
        return 130
    print(f"lamella: {message}", file=sys.stderr)
    return 2


def _mend_streams() -> None:
    """Let a stream that was closed swallow what it is given, and the others escape what their encoding lacks."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  open as long as the program runs
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _run(arguments: list[str]) -> int:
    root = argparse.ArgumentParser(
        prog="lamella",
        description="A small neural-network engine: every layer is a plugin, every trained model becomes an ONNX file "
        "that onnxruntime has already agreed with.",
    )
    root.add_argument("--version", action="version", version=_versions(), help="print versions and exit")
    choices = root.add_subparsers(title="commands", metavar="COMMAND")
    asked = next((argument for argument in arguments if not argument.startswith("-")), None)
    with aside():
        commands = _commands(asked)
    for name, command in sorted(commands.items()):
        words = command.help.replace("%", "%%")  # argparse fills in what stands after it
        sub = choices.add_parser(name, help=words, description=f"{words[:1].upper()}{words[1:]}.")
        if name == asked:
            command.configure(sub)
            sub.set_defaults(run=command.run)
    if asked is not None and asked not in commands:
        full = sorted(name for name in commands if name.endswith(f":{asked}"))
        if full:
            raise errors.RegistryError(f"several distributions give the command {asked!r}; say {' or '.join(full)}")
        listed = f" Did you mean 'lamella list {asked}'?" if asked in listing.KINDS or listing.named(asked) else ""
        hint = listed or errors.did_you_mean(asked, commands)
        fix = hint or f" {registry.INSTALL_AGAIN}"
        known = f"unknown command {asked!r}; expected one of {', '.join(sorted(commands))}.{fix}"
        raise errors.RegistryError("\n".join([known, *registry.broken()]))
    parsed = root.parse_args(arguments)
    if asked is None:
        root.print_help()
        return 0
    status: int = parsed.run(parsed)
    return status


def _commands(asked: str | None) -> dict[str, Command]:
    """By name, in full where lamella or several others have it; where lamella has what is asked for, only lamella's."""
    if asked in OWN:
        return OWN
    inside = [plugin for plugin in registry.plugins() if plugin.is_own]
    own = {**OWN, **{entry.name: entry.object for plugin in inside for entry in registry.entries("commands", plugin)}}
    if asked in own:
        return own
    found = shortest_names(COMMANDS.entries())
    return {**OWN, **{entry.qualified if name in OWN else name: entry.object for name, entry in found.items()}}


def _versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    def described(name: str) -> str:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            return f"no {name}"

    others = ", ".join(map(described, ("numpy", "onnx", "onnxruntime")))
    return f"lamella {__version__} (Python {platform.python_version()}, {others})"


OWN.update(
    {
        "check": check.COMMAND,
        "inspect": inspect.COMMAND,
        "layers": layers.COMMAND,
        "list": listing.COMMAND,
        "new-plugin": new_plugin.COMMAND,
    }
)
