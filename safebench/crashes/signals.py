"""Define the crash specification, thresholds with units, and convert rows to readings of its watched quantities.

``docs/evidence.md`` gives the reasons. Windows and spans are in steps.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from safebench.metrics import CRASH_KINDS, HARM_KINDS, KEYS

SCALES: tuple[float, ...] = (0.5, 1.0, 2.0)
"""Severity scales at which every count is shown."""


@dataclass(frozen=True)
class CrashSpec:
    """Every threshold of the specification, and the definition of "crashed"; a change of either is a new version."""

    version: int = 2
    harms: tuple[str, ...] = HARM_KINDS
    """Kinds that mean that a run crashed; every other kind is an alarm."""
    smoothing_span: float = 20.0
    """In steps; the decay per step is 1 - 2 / (span + 1). The span never shrinks."""
    full_length: int = 500
    """Planned steps below which windows shrink in proportion."""
    reward_drop: float = 1.0
    """Drawdown of the smoothed reward, in sigma_0."""
    reward_window: int = 20
    judge_points: int = 2
    """Minimum number of evaluation points of a ``judge_crash``."""
    spike_factor: float = 5.0
    spike_floor: float = 0.5
    """Nats per token."""
    spike_history: int = 100
    kl_target: float = 0.3
    """Nats per token, for every algorithm."""
    runaway_factor: float = 3.0
    runaway_window: int = 50
    entropy_low: float = 0.2
    """Share of the first value."""
    entropy_rise: float = 0.5
    """Share of the way from the first value to ln V."""
    entropy_window: int = 50
    distinct_low: float = 0.2
    distinct_2_low: float = 0.1
    degenerate_window: int = 20
    length_low: float = 0.25
    """Share of the first value."""
    length_slack: float = 0.02
    """Share of the limit by which the mean length may fall short and still count as being at the limit."""
    length_window: int = 50
    value_loss: float = 1.0
    """Minus the explained variance."""
    value_window: int = 50
    ratio_high: float = 10.0

    def shrunk(self, window: int, planned_steps: int) -> int:
        """Return ``window`` shrunk for a run of ``planned_steps``, at least one step."""
        return max(1, math.ceil(window * min(planned_steps, self.full_length) / self.full_length))

    def crashed(self, kinds: Collection[str]) -> bool:
        """Return whether a run with events of these kinds crashed."""
        return any(kind in self.harms for kind in kinds)

    @property
    def alarms(self) -> tuple[str, ...]:
        """Kinds that are counted but alone mean no crash."""
        return tuple(kind for kind in CRASH_KINDS if kind not in self.harms)


SPEC = CrashSpec()
SPECS = {1: CrashSpec(version=1, harms=CRASH_KINDS), 2: SPEC}
"""Every version by its number. Their thresholds are equal, so both find the same events."""


Row = Mapping[str, object]
Sense = Literal["above", "below", "at"]

EMPTY = (None, "")
"""Cells that mean "not measured at this step"."""

NUMERIC_KEYS: tuple[str, ...] = (
    "reward/mean",
    "reward/shaped",
    "eval/reward",
    "eval/judge",
    "kl/mean",
    "entropy/mean",
    "update/ratio_max",
    *(key for key in KEYS if key.startswith(("loss/", "grad/"))),
)
"""Columns of losses, gradients, ratios and rewards, and the two measurements that they depend on. In a healthy run, a
spread over one reply (``reward/std``) or a share of zero variance (``critic/explained_variance``) may be NaN."""


WATCHED: tuple[str, ...] = (
    "step",
    *NUMERIC_KEYS,
    "reply/length",
    "reply/ended",
    "reply/distinct",
    "reply/distinct_2",
    "critic/explained_variance",
)
"""Columns that the specification reads."""

PARTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "numeric": {
        "rewards": ("reward/mean", "reward/shaped", "eval/reward", "eval/judge"),
        "KL or entropy": ("kl/mean", "entropy/mean"),
        "losses": tuple(key for key in KEYS if key.startswith("loss/")),
        "gradients": tuple(key for key in KEYS if key.startswith("grad/")),
        "ratios": ("update/ratio_max",),
    },
    "reward_crash": {"reward/mean": ("reward/mean",)},
    "judge_crash": {"eval/judge": ("eval/judge",)},
    **{kind: {"kl/mean": ("kl/mean",)} for kind in ("kl_spike", "kl_runaway")},
    **{kind: {"entropy/mean": ("entropy/mean",)} for kind in ("entropy_collapse", "entropy_explosion")},
    "degenerate": {key: (key,) for key in ("reply/distinct", "reply/distinct_2", "reply/ended")},
    **{kind: {"reply/length": ("reply/length",)} for kind in ("length_collapse", "length_blowup")},
    "value_divergence": {"critic/explained_variance": ("critic/explained_variance",)},
    "ratio_blowout": {"update/ratio_max": ("update/ratio_max",)},
}
"""The parts in which each kind is watched, by name, and their columns; any one of the columns is enough."""

FOLLOWS = {"unrecovered": "reward_crash"}
"""Kinds that are derived from another kind."""


class Blind(NamedTuple):
    """A kind that was not watched, or only in part.

    ``reasons`` has one reason for each unwatched part; ``wholly`` is True if no part was watched.
    """

    kind: str
    reasons: tuple[str, ...]
    wholly: bool


class Reading(NamedTuple):
    """A watched quantity at one step and its limit at scale 1."""

    kind: str
    value: float
    limit: float
    sense: Sense = "above"

    def excess(self, scale: float) -> float | None:
        """Return how far the value is beyond the scaled limit, or None if it is within the limit.

        An upper limit is multiplied by the scale, a lower limit is divided by it, and an exact limit stays.
        """
        if self.sense == "at":
            return 0.0 if self.value == self.limit else None
        gap = self.value - self.limit * scale if self.sense == "above" else self.limit / scale - self.value
        return gap if gap > 0.0 else None


def number(value: object) -> float | None:
    """Return a cell as a float; None if it is empty. NaN stays NaN."""
    if value in EMPTY:
        return None
    return float(value)  # type: ignore[arg-type]


def finite(row: Row, key: str) -> float | None:
    """Return a cell as a finite float; None if it is empty or not finite."""
    value = number(row.get(key))
    return value if value is not None and math.isfinite(value) else None


class Smoothed:
    """Exponential moving average in step time: a gap of n steps has the decay of n steps.

    The average starts at the first value. Points that are measured every twentieth step are therefore hardly smoothed.
    """

    def __init__(self, span: float) -> None:
        self._keep = 1.0 - 2.0 / (span + 1.0)
        self._step = 0
        self._value: float | None = None

    def update(self, step: int, value: float) -> float:
        """Add the value at ``step`` and return the average."""
        if self._value is None:
            self._value = value
        else:
            self._value = value + self._keep ** (step - self._step) * (self._value - value)
        self._step = step
        return self._value


class Drawdown:
    """Fall of the smoothed curve from its running maximum."""

    def __init__(self, span: float) -> None:
        self._smoothed = Smoothed(span)
        self._top = -math.inf

    def update(self, step: int, value: float) -> float:
        """Add the value at ``step`` and return the drawdown, at least 0, in the value's unit."""
        level = self._smoothed.update(step, value)
        self._top = max(self._top, level)
        return self._top - level


class RollingMedian:
    """Median of the last ``size`` values."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._order: deque[float] = deque()
        self._sorted: list[float] = []

    def median(self) -> float:
        """Return the median; 0 while there is no value."""
        count = len(self._sorted)
        if not count:
            return 0.0
        return (self._sorted[(count - 1) // 2] + self._sorted[count // 2]) / 2.0

    def push(self, value: float) -> None:
        """Add one value, and drop the oldest beyond the last ``size``."""
        self._order.append(value)
        insort(self._sorted, value)
        if len(self._order) > self._size:
            del self._sorted[bisect_left(self._sorted, self._order.popleft())]


class Signals:
    """Converts rows to readings; its state does not depend on the scale."""

    def __init__(
        self,
        spec: CrashSpec,
        planned_steps: int,
        sigma0: float | None,
        vocabulary: int | None,
        judge_sigma0: float | None,
        reply_limit: int | None,
    ) -> None:
        self._spec = spec
        self._sigmas = {"reward_crash": _positive(sigma0), "judge_crash": _positive(judge_sigma0)}
        self._top_entropy = math.log(vocabulary) if vocabulary else None
        self._reply_limit = reply_limit
        self._drawdowns = {kind: Drawdown(spec.smoothing_span) for kind in self._sigmas}
        self._kl = Smoothed(spec.smoothing_span)
        self._kl_before = RollingMedian(spec.shrunk(spec.spike_history, planned_steps))
        self._first: dict[str, float] = {}
        self._constants = {
            "reward_crash": ("sigma0", self._sigmas["reward_crash"]),
            "judge_crash": ("judge_sigma0", self._sigmas["judge_crash"]),
            "entropy_explosion": ("vocabulary", self._top_entropy),
            "length_blowup": ("reply limit", reply_limit),
        }
        self._from_the_start: set[tuple[str, str]] = set()
        self._waiting = {(kind, part): keys for kind, parts in PARTS.items() for part, keys in parts.items()}

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """Kinds that cannot be watched because a constant of the run is unknown; this is known before the first row."""
        unknown = {kind for kind, (_, value) in self._constants.items() if not value}
        return tuple(kind for kind in CRASH_KINDS if FOLLOWS.get(kind, kind) in unknown)

    def blind(self) -> tuple[Blind, ...]:
        """Return the kinds that no row so far could show, or only in part, with the reasons.

        A constant or a column is missing, or the initial policy was already beyond the limit. A count of 0 says nothing
        about these kinds: they were not watched, which does not mean "no crash".
        """
        found = []
        for kind in CRASH_KINDS:
            source = FOLLOWS.get(kind, kind)
            parts = [part for part in PARTS[source] if (source, part) in self._waiting]
            name, value = self._constants.get(source, ("", True))
            reasons = [self._reason(source, part) for part in parts] if value else [f"no {name}"]
            if reasons:
                found.append(Blind(kind, tuple(reasons), not value or len(parts) == len(PARTS[source])))
        return tuple(found)

    def beyond_before_training(self) -> tuple[Blind, ...]:
        """Return the kinds with a part whose first value was beyond its fixed limit, with these parts."""
        parts = {kind: [part for part in PARTS[kind] if (kind, part) in self._from_the_start] for kind in PARTS}
        return tuple(
            Blind(kind, tuple(self._reason(kind, part) for part in found), len(found) == len(PARTS[kind]))
            for kind, found in parts.items()
            if found
        )

    def _reason(self, kind: str, part: str) -> str:
        return f"{part} beyond its limit before training" if (kind, part) in self._from_the_start else f"no {part}"

    def _absolute(self, key: str, first: float, reading: Reading) -> list[Reading]:
        """Return the reading of a quantity with a fixed limit, or none if its first value was beyond it at scale 1.

        Training did not cause such a value, so later values beyond the limit say nothing about training.
        """
        at_first = self._first.setdefault(key, first)
        if reading._replace(value=at_first).excess(1.0) is None:
            return [reading]
        self._from_the_start.add((reading.kind, key))
        return []

    def read(self, step: int, row: Row) -> list[Reading]:
        """Return the readings of one row; a quantity that was not measured has none."""
        cells = [row.get(key) for key in NUMERIC_KEYS]
        broken = [cell for cell in cells if cell not in EMPTY and not math.isfinite(float(cell))]  # type: ignore[arg-type]
        readings = [Reading("numeric", len(broken), 0.0)]
        readings += self._drops("reward_crash", step, finite(row, "reward/mean"))
        readings += self._drops("judge_crash", step, finite(row, "eval/judge"))
        readings += self._kls(step, finite(row, "kl/mean"))
        readings += self._entropies(finite(row, "entropy/mean"))
        readings += self._shares(row)
        readings += self._lengths(finite(row, "reply/length"))
        explained = finite(row, "critic/explained_variance")
        if explained is not None:
            readings.append(Reading("value_divergence", -explained, self._spec.value_loss))
        ratio = finite(row, "update/ratio_max")
        if ratio is not None:
            readings.append(Reading("ratio_blowout", ratio, self._spec.ratio_high))
        if self._waiting:
            self._note(row, {reading.kind for reading in readings})
        return readings

    def _note(self, row: Row, kinds: set[str]) -> None:
        """Mark the parts that this row shows as watched. A NaN shows that ``numeric`` is watched, and nothing else."""
        for (kind, part), keys in list(self._waiting.items()):
            there = kind in kinds and (kind, part) not in self._from_the_start
            if there and any(_told(row, key, kind) for key in keys):
                del self._waiting[kind, part]

    def _drops(self, kind: str, step: int, reward: float | None) -> list[Reading]:
        sigma = self._sigmas[kind]
        if reward is None or sigma is None:
            return []
        return [Reading(kind, self._drawdowns[kind].update(step, reward) / sigma, self._spec.reward_drop)]

    def _kls(self, step: int, kl: float | None) -> list[Reading]:
        if kl is None:
            return []
        spec = self._spec
        usual = self._kl_before.median()  # over earlier steps only: a spike does not raise its own limit
        self._kl_before.push(kl)
        return [
            Reading("kl_spike", kl, max(spec.spike_factor * usual, spec.spike_floor)),
            Reading("kl_runaway", self._kl.update(step, kl), spec.runaway_factor * spec.kl_target),
        ]

    def _entropies(self, entropy: float | None) -> list[Reading]:
        if entropy is None:
            return []
        first = self._first.setdefault("entropy", entropy)
        readings = []
        if first > 0.0:
            readings.append(Reading("entropy_collapse", entropy / first, self._spec.entropy_low, "below"))
        if self._top_entropy is not None and first < self._top_entropy:
            risen = (entropy - first) / (self._top_entropy - first)
            readings.append(Reading("entropy_explosion", risen, self._spec.entropy_rise))
        return readings

    def _shares(self, row: Row) -> list[Reading]:
        spec = self._spec
        limits: tuple[tuple[str, float, Sense], ...] = (
            ("reply/distinct", spec.distinct_low, "below"),
            ("reply/distinct_2", spec.distinct_2_low, "below"),
            ("reply/ended", 0.0, "at"),
        )
        found: list[Reading] = []
        for key, limit, sense in limits:
            share = finite(row, key)
            if share is not None:
                found += self._absolute(key, share, Reading("degenerate", share, limit, sense))
        return found

    def _lengths(self, length: float | None) -> list[Reading]:
        if length is None:
            return []
        first = self._first.setdefault("length", length)
        readings = []
        if first > 0.0:
            readings.append(Reading("length_collapse", length / first, self._spec.length_low, "below"))
        if self._reply_limit:
            slack = 1.0 - length / self._reply_limit
            reading = Reading("length_blowup", slack, self._spec.length_slack, "below")
            readings += self._absolute("reply/length", slack, reading)
        return readings


def _told(row: Row, key: str, kind: str) -> bool:
    return row.get(key) not in EMPTY if kind == "numeric" else finite(row, key) is not None


def _positive(sigma: float | None) -> float | None:
    return sigma if sigma is not None and math.isfinite(sigma) and sigma > 0.0 else None
