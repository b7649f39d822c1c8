"""Write files so that the files on the disk are complete at all times, and name the cause if a write fails."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from safebench.errors import MissingResource, UsageError

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST})

# Some network file systems do not support locks on folders. A run there continues without a lock.
_NO_LOCKS = frozenset({errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EBADF, errno.EINVAL})


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Convert "no space" and "not permitted" errors in the block to a ``MissingResource`` that names ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            hint = "Free some space, then give the same command again: the run resumes from its last checkpoint."
            raise MissingResource(f"no room to write {path}: {error.strerror}", hint) from error
        if error.errno in _REFUSED:
            hint = "Make the folder writable, or choose another folder for the results."
            raise MissingResource(f"cannot write {path}: {error.strerror}", hint) from error
        raise


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def make_folder(folder: Path) -> None:
    """Create ``folder`` and its parents; raise ``MissingResource`` if that is refused."""
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def write_atomic(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Replace ``path`` by ``data`` atomically: a reader sees the old file or the new one, never a part of it.

    ``durable`` waits for the disk, so that the new file also survives a power cut.
    """
    part = path.with_name(f".{path.name}.part")
    with storing(path):
        try:
            with part.open("wb") as file:
                file.write(data)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            with suppress(OSError):  # absent on success; on failure, report the first error
                part.unlink(missing_ok=True)
        if durable:
            sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in ``folder`` (a rename, a new file) are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Appender:
    """A file to which lines are appended.

    Each line goes to the operating system at once and unbuffered, so that it survives any end of this process.
    ``write`` does not wait for the disk: that costs milliseconds per step and helps only against a power cut, after
    which a run resumes from its last checkpoint. ``sync`` is called at checkpoints. A line that cannot be written
    completely is removed again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with storing(path):
            self._file = path.open("ab", buffering=0)
        self._end = self._file.seek(0, os.SEEK_END)

    @property
    def empty(self) -> bool:
        """Whether the file is still empty."""
        return self._end == 0

    def write(self, line: str) -> None:
        """Append ``line`` and a line break; ``line`` must not contain a line break."""
        data = f"{line}\n".encode()
        written = False
        try:
            with storing(self.path):
                rest = memoryview(data)
                while rest:
                    rest = rest[self._file.write(rest) :]
            written = True
        finally:
            if not written:
                with suppress(OSError):
                    self._file.truncate(self._end)
        self._end += len(data)

    def sync(self) -> None:
        """Wait until all lines are on the disk."""
        with storing(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._file.close()


class FolderLock:
    """A lock that keeps a second writer out of a run folder; the system releases it when the process ends."""

    def __init__(self, folder: Path) -> None:
        self._handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._handle)
            hint = "Wait for it to end, or choose another folder for the results."
            raise UsageError(f"another process is writing the run in {folder}", hint) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(self._handle)
                raise

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._handle)


def is_locked(folder: Path) -> bool:
    """Return whether a process is writing the run in ``folder`` right now."""
    if not folder.is_dir():
        return False
    try:
        with FolderLock(folder):
            return False
    except UsageError:
        return True
