"""An exported file and the proof beside it: how they are written together, and read without trust."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lamella import DataError
from lamella.arguments import file_path
from lamella.files.writing import write_atomically

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["alone_in", "as_path", "digest", "proof_path", "read", "write"]

LARGEST = 2**31 - 1  # bytes; protobuf takes no more
PATIENCE = 10.0  # seconds to wait for others who write to a folder


def as_path(path: Any, where: str) -> Path:
    """Return an argument as a path."""
    return Path(file_path(path, f"{where}: path"))


def digest(content: bytes) -> str:
    """Return the digest that identifies a proof."""
    return hashlib.sha256(content).hexdigest()


def proof_path(path: Path, sha256: str) -> Path:
    """Return where a proof stands that is too long for the model's file; the digest keeps those of others apart.

    Links are followed: the proof stands beside the file itself.
    """
    file = Path(os.path.realpath(path))
    return file.with_name(f"{file.name}.{sha256[:8]}.proof")


def read(path: Path) -> bytes:
    """Read a regular file whole.

    Raises:
        FileNotFoundError: there is none.
        DataError: it is a folder, a pipe, a device, too large, or can't be read; which file, the caller says.
    """
    try:
        _need_regular(os.stat(path))
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
            found = os.fstat(file.fileno())  # it may be another one by now
            _need_regular(found)
            return file.read(found.st_size)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"can't be read ({error.strerror})") from error


def _need_regular(found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise DataError("expected a file, this is a folder")
    if not stat.S_ISREG(found.st_mode):
        raise DataError("expected a regular file, this is a pipe or a device")
    if found.st_size > LARGEST:
        raise DataError(f"{found.st_size:,} bytes; an ONNX file of one piece holds less than 2 GiB")


def write(path: Path, content: bytes, proof: bytes | None) -> None:
    """Write a file and the proof beside it, or neither.

    The proof comes first, under a name of its own, so that at any moment the file that stands there has its proof.
    Whoever writes to the same folder waits, so that nobody takes the other's proof for an old one.
    """
    path = Path(os.path.realpath(path))
    beside = None if proof is None else proof_path(path, digest(proof))
    with alone_in(path.parent):
        known = beside is not None and beside.exists()
        try:
            if beside is not None and proof is not None:
                write_atomically(beside, proof)
            write_atomically(path, content)
        except BaseException:  # also Ctrl-C, which may come when the file is in place
            if beside is not None and not known and not _holds(path, content):
                beside.unlink(missing_ok=True)
            raise
        for old in path.parent.glob(f"{glob.escape(path.name)}.{'[0-9a-f]' * 8}.proof"):
            if old != beside:
                with contextlib.suppress(OSError):  # left behind, it is nobody's proof
                    old.unlink()


def _holds(path: Path, content: bytes) -> bool:
    with contextlib.suppress(OSError, DataError):
        return read(path) == content
    return False


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[bool]:
    """Hold a lock on a folder, where the system has such locks, and tell whether it is held.

    It leaves nothing behind.
    """
    handle, held = None, False
    try:
        with contextlib.suppress(OSError):  # no such folder, which writing tells, or no locks on this file system
            handle = os.open(folder, os.O_RDONLY)
            held = _lock(handle)
        yield held
    finally:
        if handle is not None:
            with contextlib.suppress(OSError):
                _unlock(handle)
            os.close(handle)


def _lock(handle: int) -> bool:
    """Wait for a lock, but not for ever: who holds it may have been stopped. Tell whether it was given."""
    deadline = time.monotonic() + PATIENCE
    while fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
    return False


def _unlock(handle: int) -> None:
    """Give the lock back; closing is not enough where a process was forked meanwhile."""
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_UN)
