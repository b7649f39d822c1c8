"""Imports Python code of the user or of another package, and finds where in such code an error arose."""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import inspect
import site
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from traceback import FrameSummary
from typing import Any

from safebench.errors import BadResource, MissingResource, SafebenchError, UsageError, out_of_memory

_PACKAGE = Path(__file__).parent
_STANDARD = tuple(Path(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib"))
_INSTALLED = tuple(
    Path(place)
    for place in (
        *(sysconfig.get_path(kind) for kind in ("purelib", "platlib")),
        *site.getsitepackages(),
        site.getusersitepackages(),
    )
)

_OF_THE_MACHINE = frozenset(
    getattr(errno, name)
    for name in (
        *("ENOENT", "EACCES", "EPERM", "EROFS", "EISDIR", "ENOTDIR", "ENAMETOOLONG", "ELOOP"),
        *("ENOSPC", "EDQUOT", "EIO"),
    )
)
"""File errors that no command can foresee: no such file, no permission, another kind of file, no space."""

RAISES = (Exception, SystemExit)
"""What such code may raise: any exception, and ``SystemExit`` from ``sys.exit`` at its top level."""


def load(target: str) -> Any:
    """Import ``module:attribute``, installed or in the current folder.

    Raises ``MissingResource`` if module, attribute or a module that it imports is missing, and ``UsageError`` with
    file and line if the module's own code fails.
    """
    module_name, _, attribute = target.partition(":")
    found = _import(target, module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise MissingResource(
                f"{target}: {module_name} has no {attribute!r}", hint="Correct the name after the colon."
            )
        found = getattr(found, part)
    return found


def _import(target: str, module_name: str) -> Any:
    here = str(Path.cwd())
    # First in the path during the import, and last afterwards, for what the module imports when it is called.
    sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except SyntaxError as error:
        raise UsageError(
            f"{target} does not import: {syntax(error)}", "Correct that line and call the same command again."
        ) from error
    except ImportError as error:
        place = where(error)
        if place is None and error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise MissingResource(
                f"{target}: no module {error.name!r}", hint="Install its package, or run from the folder that holds it."
            ) from error
        said = f"{target} does not import: {place or module_name}: {error}"
        if isinstance(error, ModuleNotFoundError) and error.name:
            package = error.name.partition(".")[0]
            raise MissingResource(said, f"Install {package}, or correct the line that imports it.") from error
        raise MissingResource(said, "Correct the line that imports it.") from error
    except RAISES as error:  # the module's own code runs when it is imported
        raise UsageError(
            f"{target} does not import: {where(error) or module_name}: {named(error)}",
            "Correct that line and call the same command again.",
        ) from error
    finally:
        sys.path.remove(here)
        if here not in sys.path:
            sys.path.append(here)


@contextlib.contextmanager
def making(what: str, make: Any, how: str) -> Iterator[None]:
    """Raise ``UsageError`` naming ``what`` if ``make`` is not of this package and rejects the call ``how`` or raises.

    Errors of this package's own code pass unchanged.
    """
    try:
        yield
    except SafebenchError:
        raise
    except RAISES as error:  # code of others may raise anything
        if str(getattr(make, "__module__", "")).partition(".")[0] == __package__:
            raise
        place = where(error) or defined_at(make)
        raise UsageError(
            f"{what} cannot be made: {named(error)}{f' ({place})' if place else ''}",
            f"It is called as {how}.",
        ) from error


def named(error: BaseException) -> str:
    """Return an error's type and message on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def syntax(error: SyntaxError) -> str:
    """Return file, line and message of a syntax error."""
    if not error.filename or error.filename.startswith("<"):  # of text that the module compiles itself
        return f"{place}: {named(error)}" if (place := where(error)) else named(error)
    return f"{shown(error.filename)}, line {error.lineno or 1}: {type(error).__name__}: {error.msg}"


def where(error: BaseException) -> str | None:
    """Return file and line of the last frame of an error that lies in code of the user.

    If there is none, return those of the first frame in another installed package, such as one behind an entry point.
    Return None if all frames are in this package and the standard library.
    """
    if own := _users(error):
        return _place(own[-1])
    installed = [frame for frame in _frames(error) if _lies_in(frame, _INSTALLED) and not _lies_in(frame, (_PACKAGE,))]
    return _place(installed[0]) if installed else None


def blamed(error: Exception) -> SafebenchError | None:
    """Return the error to report if this package is not the cause of ``error``; None if it is.

    Other causes are that memory ran out, that a file cannot be used, or that code of the user raised: code that is
    neither this package's nor installed.
    """
    if (memory := out_of_memory(error)) is not None:
        return memory
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE and error.filename is not None:
        return MissingResource(f"{error.filename!s:.200}: {error.strerror}", "Choose another path, or mend this one.")
    if not _users(error):
        return None
    return BadResource(
        f"{where(error)} raised {named(error)}", "Correct that line and call the same command again."
    )


def source_of(found: Any) -> str | None:
    """Return the file that holds a function, a class, or the class of any other object; None if there is none."""
    while isinstance(found, functools.partial):
        found = found.func
    found = inspect.unwrap(found)
    for candidate in (found, type(found)):
        try:
            return inspect.getsourcefile(candidate)
        except TypeError:  # a built-in, or no function and no class
            continue
    return None


def defined_at(found: Any) -> str | None:
    """Return file and line where a function is defined; None if they are not known."""
    while isinstance(found, functools.partial):
        found = found.func
    kind, method = (found, "__init__") if isinstance(found, type) else (type(found), "__call__")
    entered = getattr(kind, method, None)
    code = getattr(inspect.unwrap(found), "__code__", None) or getattr(entered, "__code__", None)
    return None if code is None else f"{shown(code.co_filename)}, line {code.co_firstlineno}"


def shown(filename: str) -> str:
    """Return a file's name as the user knows it: relative to the current folder if it lies below that folder."""
    path = Path(filename)
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return filename


def _frames(error: BaseException) -> list[FrameSummary]:
    return [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]


def _users(error: BaseException) -> list[FrameSummary]:
    return [frame for frame in _frames(error) if not _lies_in(frame, (_PACKAGE, *_INSTALLED, *_STANDARD))]


def _lies_in(frame: FrameSummary, folders: tuple[Path, ...]) -> bool:
    return any(Path(frame.filename).is_relative_to(folder) for folder in folders)


def _place(frame: FrameSummary) -> str:
    return f"{shown(frame.filename)}, line {frame.lineno}"
