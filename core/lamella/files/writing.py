"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time

from lamella.errors import DataError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["check_place", "kind_of", "write_atomically"]

_PREFIX, _SUFFIX = ".lamella-", ".part"  # of files that are being written
_PATIENCE = 2.0  # seconds to wait for others who have a file open


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file whole or not at all: to a temporary file beside it, which then takes its place.

    A symbolic link is followed, and a file that is replaced keeps its permissions. Temporary files that killed
    processes left in the folder go.

    Raises:
        DataError: what stands there is no regular file.
        OSError: the folder is missing, or the file cannot be written; what stood there still does.
    """
    target, there = check_place(path)
    folder = os.path.dirname(target)
    _clear(folder)
    temporary, handle = _begin(folder)
    try:
        with os.fdopen(handle, "wb") as file:  # locked until it is in place, so that nobody clears it
            file.write(content)
            file.flush()
            if there is not None:
                _take_over(temporary, there)
            os.fsync(file.fileno())
            if fcntl is not None:
                os.replace(temporary, target)
        if fcntl is None:
            _replace_patiently(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # it may have taken its place already
            os.unlink(temporary)
        raise
    _settle(folder)


def check_place(path: str | os.PathLike[str]) -> tuple[str, os.stat_result | None]:
    """Return where a file would be written, links followed, and what is known of the file that stands there.

    Raises:
        DataError: what stands there is no regular file.
        OSError: the folder is missing, or the place is a folder.
    """
    given = os.fspath(path)
    target = os.path.realpath(given)
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "no such folder; make it first", folder)
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, "this folder can't be written to", folder)
    try:
        there = os.stat(target)
    except FileNotFoundError:
        return target, None
    if stat.S_ISDIR(there.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder; give the name of a file", given)
    if not stat.S_ISREG(there.st_mode):
        raise DataError(f"{given}: expected the name of a file, got {kind_of(there.st_mode)}, which stays as it is")
    return target, there


def kind_of(mode: int) -> str:
    """What stands at a place that is no regular file, in words."""
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((word for is_one, word in kinds.items() if is_one(mode)), "a device")


def _take_over(temporary: str, there: os.stat_result) -> None:
    """Give a file the permissions of another and, where that is allowed, its owner."""
    if hasattr(os, "chown"):
        with contextlib.suppress(OSError):
            os.chown(temporary, there.st_uid, there.st_gid)
    os.chmod(temporary, stat.S_IMODE(there.st_mode))


def _replace_patiently(temporary: str, target: str) -> None:
    """Let a file take the place of another on Windows, which refuses that while somebody has the other open.

    Scanners of viruses and programs that make copies do so for a moment.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            os.replace(temporary, target)
            return
        except PermissionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin(folder: str) -> tuple[str, int]:
    """A new temporary file, locked, and its handle."""
    while True:
        temporary = os.path.join(folder, f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}")
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666)
        if fcntl is None:
            return temporary, handle
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(handle).st_nlink:
                return temporary, handle
        except BlockingIOError:  # somebody is about to clear it, in the moment before it was locked
            pass
        except OSError:  # a file system without locks
            return temporary, handle
        os.close(handle)


def _clear(folder: str) -> None:
    """Remove temporary files that nobody writes any more."""
    if fcntl is None:
        return
    names: list[str] = []
    with contextlib.suppress(OSError):  # a folder that may be written to and not read
        names = os.listdir(folder)
    for name in names:
        if not (name.startswith(_PREFIX) and name.endswith(_SUFFIX)):
            continue
        with contextlib.suppress(OSError):  # it is locked, gone meanwhile, or another user's
            path = os.path.join(folder, name)
            handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
            finally:
                os.close(handle)


def _settle(folder: str) -> None:
    """Let the new name outlast a loss of power, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
