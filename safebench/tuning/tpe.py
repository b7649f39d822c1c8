"""Chooses points from the results so far with Optuna's TPE sampler; the only module that imports optuna."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from safebench.config.schema import Knob
from safebench.errors import without_optuna
from safebench.tuning.search import PATIENCE, Point, Search, Tunable, is_whole, points, rounded

OPTION = "--sampler optuna"
LEAST = 3
"""Fewest points of a search: the published one, one of Halton's, and one that Optuna chooses."""


def first_points(tunable: Tunable, count: int) -> list[Point]:
    """Return the first half, rounded up, of a search's ``count`` points: Halton's, which do not depend on results.

    Raises ``MissingResource`` without Optuna, and ``UsageError`` if rounding to whole numbers leaves fewer than
    ``count`` points.
    """
    with _optuna():
        pass  # Optuna is installed
    return points(tunable, count)[: math.ceil(count / 2)]


def propose(found: Search) -> Point:
    """Return the point that follows those of ``found``, whose trials are in the order of their points.

    The point depends only on the trials: a new study is built from them, and the seed is the point's number. The same
    results therefore give the same point with the same release of Optuna. A point whose criterion is missing on a seed
    is reported to Optuna as failed. A point with a setting that is off (null) lies in no range and is not reported. If
    ``PATIENCE`` draws give no new point, the first new one of Halton's sequence is taken.
    """
    tunable, number = found.tunable, len(found.trials) + 1
    tried = [trial.point.values for trial in found.trials]
    with _optuna() as optuna:
        ranges = {
            key: _distribution(optuna, knob, is_whole(tunable.published[key])) for key, knob in tunable.knobs.items()
        }
        study = _study(optuna, found, ranges)
        for _ in range(PATIENCE):
            drawn = study.ask(ranges)
            values = {
                key: rounded(knob, drawn.params[key], is_whole(tunable.published[key]))
                for key, knob in tunable.knobs.items()
            }
            if values not in tried:
                return Point(number, values, "optuna")
    # These are ``number`` different points, of which at most ``number`` - 1 were tried.
    spare = next(point for point in points(tunable, number) if point.values not in tried)
    return Point(number, spare.values)


def _study(optuna: Any, found: Search, ranges: Mapping[str, Any]) -> Any:
    """Return a study that holds every trial without null settings."""
    sampler = optuna.samplers.TPESampler(
        seed=len(found.trials) + 1,
        n_startup_trials=1,  # Halton's points replace its own random ones, except in a study without any result
        multivariate=True,  # models the knobs jointly
        constant_liar=True,  # a draw that was tried already moves the next draw away
    )
    direction = "minimize" if found.criterion.direction == "down" else "maximize"
    study = optuna.create_study(sampler=sampler, direction=direction)
    state = optuna.trial.TrialState
    for trial in found.trials:
        values = dict(trial.point.values)
        if None in values.values():
            continue
        outcome = {"state": state.COMPLETE, "value": trial.estimate.value} if trial.whole else {"state": state.FAIL}
        study.add_trial(optuna.trial.create_trial(params=values, distributions=dict(ranges), **outcome))
    return study


def _distribution(optuna: Any, knob: Knob, whole: bool) -> Any:
    log = knob.scale == "log"
    if whole:
        return optuna.distributions.IntDistribution(math.ceil(knob.low), math.floor(knob.high), log=log)
    return optuna.distributions.FloatDistribution(knob.low, knob.high, log=log)


@contextmanager
def _optuna() -> Iterator[Any]:
    """Yield Optuna with its messages silenced; raise ``MissingResource`` if it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import optuna
        except ModuleNotFoundError as fault:
            if fault.name != "optuna":
                raise
            raise without_optuna(OPTION) from fault
        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            yield optuna
        finally:
            optuna.logging.set_verbosity(level)
