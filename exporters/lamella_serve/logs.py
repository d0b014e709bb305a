"""The server's log on standard error: JSON lines for programs, short lines for people who watch."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from typing import Any

__all__ = ["answered", "of_requests", "set_up"]

of_requests = logging.getLogger("lamella_serve.access")

_OWN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "color_message"}


class _Lines(logging.Formatter):
    """One line for each event, with what is known about it."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        known: dict[str, Any] = {key: value for key, value in record.__dict__.items() if key not in _OWN}
        if record.exc_info:
            known["traceback"] = self.formatException(record.exc_info)
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        if self._as_json:
            stamp = time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
            head = {"time": stamp, "level": record.levelname.lower(), "event": record.getMessage()}
            return json.dumps({**head, **known}, default=str, ensure_ascii=False)
        traceback = known.pop("traceback", None)
        said = "  ".join(f"{key}={_printable(value)}" for key, value in known.items() if value is not None)
        line = f"{time.astimezone():%H:%M:%S} {record.levelname.lower():7} {record.getMessage()}  {said}".rstrip()
        return line if traceback is None else f"{line}\n{traceback}"


def _printable(value: Any) -> str:
    """A value as it can't be taken for another line, or command the terminal."""
    said = str(value)
    return said if said.isprintable() and " " not in said else json.dumps(said, ensure_ascii=not said.isprintable())


def answered(call: str, status: int, ns: int) -> None:
    """Log a request.

    Arguments:
        call: what was asked for.
        status: the HTTP status of the answer, or what would be.
        ns: nanoseconds that it took.
    """
    if of_requests.isEnabledFor(logging.INFO):
        of_requests.info("answered", extra={"call": call, "status": status, "milliseconds": round(ns / 1e6, 3)})


def set_up(*, access: bool) -> None:
    """Write the server's events, and those of uvicorn and gRPC, to standard error.

    Arguments:
        access: whether to write a line for each request.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(as_json=not sys.stderr.isatty()))
    for name, level in (
        ("lamella_serve", logging.INFO),
        ("lamella_serve.access", logging.INFO if access else logging.WARNING),
        ("uvicorn.error", logging.WARNING),
        ("grpc", logging.WARNING),
    ):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        if name != "lamella_serve.access":  # which passes on to its parent
            logger.addHandler(handler)
            logger.propagate = False
