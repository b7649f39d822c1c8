"""Which runs, and which rows of a comparison, somebody asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from safebench import yaml_text
from safebench.errors import UsageError
from safebench.evidence.compare import Comparison
from safebench.evidence.filled import filled
from safebench.evidence.runs import Run
from safebench.names import nearest


def matching(runs: Iterable[Run], where: Sequence[str]) -> list[Run]:
    """Return the runs that have every setting of ``where``, each ``key.path=value`` with the value as YAML reads it.

    Raises ``UsageError`` for text without ``=``, and for a key that none of the runs has.
    """
    found = list(runs)
    flat = [filled(run) for run in found]
    for condition in where:
        key, equals, text = condition.partition("=")
        if not equals:
            raise UsageError(f"--where {condition!r} has no =", "Write key=value, such as update.learning_rate=1e-4.")
        if flat:
            _known_key(key, {name for settings in flat for name in settings})
        value = yaml_text.read(text)
        kept = [i for i, settings in enumerate(flat) if key in settings and _equal(settings[key], value)]
        found, flat = [found[i] for i in kept], [flat[i] for i in kept]
    return found


def choose(comparison: Comparison, metrics: Sequence[str]) -> Comparison:
    """Return the comparison with only the rows (and tests) of ``metrics``, in that order; all when there are none.

    A metric is the key of a row, such as ``judge_final``, or the beginning of some, such as ``kl`` or ``crash``.
    Holm's correction stays over all that was declared: looking at fewer rows makes no test easier.
    """
    if not metrics:
        return comparison
    keys = [row.scalar.key for row in comparison.rows]
    wanted = list(dict.fromkeys(key for metric in metrics for key in _expanded(metric, keys)))
    tests = tuple(test for test in comparison.tests if test.scalar.key in wanted)
    return replace(comparison, rows=tuple(comparison.row(key) for key in wanted), tests=tests)


def _expanded(metric: str, keys: Sequence[str]) -> list[str]:
    found = [key for key in keys if key == metric] or [key for key in keys if key.startswith(metric)]
    if not found:
        near = nearest(metric, keys)
        advice = f"did you mean {near}?" if near else f"there are {', '.join(keys)}"
        raise UsageError(f"no metric {metric!r} in this comparison; {advice}", "A metric is named by its row's key.")
    return found


def _known_key(key: str, keys: set[str]) -> None:
    if key not in keys:
        near = nearest(key, sorted(keys))
        raise UsageError(
            f"--where {key}: no run has such a setting" + (f"; did you mean {near}?" if near else ""),
            "`safebench run EXPERIMENT --dry-run` prints all settings.",
        )


def _equal(held: object, wanted: object) -> bool:
    """Compare as numbers where both are: 1 and 1.0 are one setting; True and 1 are two."""
    numbers = isinstance(held, int | float) and isinstance(wanted, int | float)
    if numbers and not isinstance(held, bool) and not isinstance(wanted, bool):
        return held == wanted
    return type(held) is type(wanted) and held == wanted
