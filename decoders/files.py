"""Writing a file whole or not at all, and where this user's caches are."""

import errno
import fcntl
import os
import secrets
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path

from decoders.errors import UserError

_ABANDONED = 24 * 3600.0
"""Seconds after which a temporary file of another machine, whose locks may not be seen here, is nobody's any more."""
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What `flock` says on file systems without locks, such as Lustre mounted with `noflock`."""


def cache_folder() -> Path:
    """Where things live that can be made again, by the desktop standard; never in the work tree."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "datagen"


@contextmanager
def atomic_file(path: Path) -> Generator[BufferedRandom, None, None]:
    """A file to write and read that appears under `path` when the block ends well, and leaves no trace otherwise.

    The temporary file is locked while it is written, so `remove_stale` can tell a killed writer's from a living one's.

    Raises:
        UserError: the disk is full, or the folder cannot be written to.
    """
    with _clear_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file, temporary = _locked_temporary(path.parent)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_atomic(path: Path, data: bytes) -> None:
    """All of `data` under `path`, or nothing; errors as `atomic_file`."""
    with atomic_file(path) as file:
        file.write(data)


@contextmanager
def no_other_writer(folder: Path) -> Generator[None, None, None]:
    """Keep other processes from writing the same folder, which is made if need be, while the block runs.

    Raises:
        UserError: another one is writing it, or it cannot be made.
    """
    with _clear_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)  # the folder itself is locked: nothing is left behind
    try:
        try:
            _lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is writing {folder}; wait until it ends, or choose another folder"
            ) from None
        yield
    finally:
        os.close(handle)


def remove_stale(folder: Path) -> None:
    """Remove the temporary files of writers that were killed; those of living writers stay.

    Those of other machines go after a day, as a lock may be known to the machine alone that holds it.
    """
    for path in sorted(folder.glob(".*.tmp")):
        try:
            if path.name.startswith(f".{_host()}-"):
                with path.open("r+b") as file:  # NFS locks what can be written to
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
            elif time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink()
        except OSError:  # locked by a living writer, gone already, or not ours to remove: all may stay
            continue


def _locked_temporary(folder: Path) -> tuple[BufferedRandom, Path]:
    while True:
        path = folder / f".{_host()}-{secrets.token_hex(8)}.tmp"
        file = path.open("x+b")
        try:
            _lock(file.fileno(), fcntl.LOCK_EX)
        except BaseException:
            file.close()
            path.unlink(missing_ok=True)
            raise
        if os.fstat(file.fileno()).st_nlink:  # else a cleaner came between opening and locking
            return file, path
        file.close()


def _lock(handle: int, how: int) -> None:
    """`flock`, or nothing where the file system has no locks."""
    try:
        fcntl.flock(handle, how)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _host() -> str:
    """This machine in a file name."""
    return "".join(letter if letter.isalnum() else "_" for letter in socket.gethostname())


@contextmanager
def _clear_errors(path: Path) -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"disk full while writing {path}; nothing half-written was kept: free some space, then run the same "
                "command again, it goes on where it stopped"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            raise UserError(
                f"cannot write {path} ({error.strerror}); make its folder writable or choose another with --to"
            ) from error
        raise
