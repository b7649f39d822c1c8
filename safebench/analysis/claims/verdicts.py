"""Define the parts of a ledger, and the one rule of verdicts, for *holds* and *fails* alike (docs/claims.md).

A figure lies on a side of its bound if Student's t-interval lies wholly on that side *and* the exact sign-flip test
rejects, both two-sided at 5 %. Crash-shaped figures (counts, yes or no) have no t-interval; the exact test alone
decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from safebench.analysis import statistics
from safebench.analysis.scalars import Summary
from safebench.analysis.statistics import ALPHA, Estimate
from safebench.crashes.signals import CrashSpec

Verdict = Literal["holds", "fails", "not shown"]
Kind = Literal["difference", "ratio", "share"]
Against = Literal["opponent", "ablation", "length", "itself"]


@dataclass(frozen=True)
class Part:
    """One figure of one question, and the side that it supports.

    ``estimate`` is the arm's value minus the other's, in ``unit``. For a ``ratio`` it is the arm's value divided by the
    other's. For a ``share`` the values are shares of runs, and so are ``means``. ``direction`` is the side of ``bound``
    on which the claim places the figure. ``side`` is 1 if the rule finds it on that side, -1 if it finds it on the
    other side, 0 if it decides nothing. A part with ``decides`` False is only shown.
    """

    label: str
    unit: str
    direction: Literal["up", "down"]
    estimate: Estimate
    means: tuple[float, float]
    side: int
    why: str
    kind: Kind = "difference"
    bound: float = 0.0
    decides: bool = True


@dataclass(frozen=True)
class Finding:
    """The result of the available runs. ``certain`` means that no missing run could change the verdict."""

    verdict: Verdict
    why: str
    parts: tuple[Part, ...] = ()
    certain: bool = False


@dataclass(frozen=True)
class Case:
    """The runs of one question: ``first`` are the arm's, ``second`` those it is compared to (empty if by itself).

    ``context`` holds other arms' runs that a reason may mention; no verdict rests on them.
    """

    arm: str
    other: str
    first: tuple[Summary, ...]
    second: tuple[Summary, ...] = ()
    context: Mapping[str, Sequence[Summary]] = field(default_factory=dict)

    @property
    def pairs(self) -> list[tuple[Summary, Summary]]:
        """The arm's and the other's run of each seed that both have, by seed."""
        others = {summary.run.seed: summary for summary in self.second}
        own = sorted(self.first, key=lambda summary: summary.run.seed)
        return [(summary, others[summary.run.seed]) for summary in own if summary.run.seed in others]


@dataclass(frozen=True)
class Claim:
    """One claim of the paper.

    ``words`` restates the claim, ``meaning`` says what is measured and when the claim holds and fails, and ``paper`` is
    the paper's figure. ``against`` says what the arm is compared to. For an ablation, ``ablations`` names it by arm,
    and ``drops`` the settings in which the two may differ. ``tests`` is the number of figures that share the test's
    level.
    """

    number: int
    title: str
    words: str
    meaning: str
    measure: Callable[[Case], Finding]
    paper: str = "none obtained"
    against: Against = "opponent"
    ablations: Mapping[str, str] = field(default_factory=dict)
    drops: tuple[str, ...] = ()
    tests: int = 1


@dataclass(frozen=True)
class Entry:
    """One claim evaluated for one arm, against ``opponent`` (None: for the arm by itself).

    ``seeds`` are those that the figures rest on. ``missing`` says what a verdict still needs. ``command`` makes the
    runs that the entry rests on or, if some are missing, the missing ones.
    """

    claim: Claim
    arm: str
    opponent: str | None
    verdict: Verdict
    why: str
    parts: tuple[Part, ...]
    seeds: tuple[int, ...]
    missing: tuple[str, ...]
    command: str

    @property
    def ours(self) -> Estimate | None:
        """The entry's first figure; None if no run could give one."""
        return self.parts[0].estimate if self.parts else None

    @property
    def question(self) -> str:
        """The arm and its opponent, in words."""
        return self.arm if self.opponent is None else f"{self.arm} vs {self.opponent}"


@dataclass(frozen=True)
class Ledger:
    """Every entry, claim by claim, and the notes under them. ``seeds`` are all seeds that any entry rests on."""

    entries: tuple[Entry, ...]
    spec: CrashSpec
    seeds: tuple[int, ...]
    notes: tuple[str, ...]

    @property
    def by_claim(self) -> list[tuple[Claim, tuple[Entry, ...]]]:
        """The claims in their order, each with its entries."""
        claims = {entry.claim.number: entry.claim for entry in self.entries}
        return [(claim, tuple(e for e in self.entries if e.claim.number == n)) for n, claim in claims.items()]

    def entry(self, number: int, arm: str, opponent: str | None = None) -> Entry:
        """Return the entry of one claim for one question; raise ``KeyError`` if there is none."""
        for entry in self.entries:
            if (entry.claim.number, entry.arm, entry.opponent) == (number, arm, opponent):
                return entry
        raise KeyError((number, arm, opponent))


def enough(alpha: float = ALPHA) -> int:
    """Return the smallest number of pairs whose sign-flip p can fall below ``alpha``: 6 at 5 %."""
    n = 1
    while statistics.smallest_p(n) >= alpha:
        n += 1
    return n


def side(differences: Sequence[float], bound: float = 0.0, alpha: float = ALPHA, *, exact: bool = False) -> int:
    """Return 1 if the differences lie above ``bound``, -1 if below it, 0 if the tests do not agree on a side.

    ``exact`` leaves the t-interval out. Swapping the arms (differences and bound negated) negates the result.
    """
    shifted = [beyond(difference, bound) for difference in differences]
    if not shifted or not statistics.sign_flip(shifted) < alpha:
        return 0
    flipped = 1 if math.fsum(shifted) > 0 else -1
    if exact:
        return flipped
    interval = statistics.mean(shifted, 1 - alpha)
    agrees = interval.low > 0 if flipped > 0 else interval.high < 0
    return flipped if agrees else 0


def one_sided(better: int, worse: int) -> tuple[float, float]:
    """Return the exact one-sided p-values for ``better`` and for ``worse``, the two numbers of discordant pairs.

    McNemar's test: P(X >= better) and P(X >= worse) for X ~ Binomial(better + worse, 1/2).
    """
    n = better + worse
    return _tail(n, better), _tail(n, worse)


def exact_side(better: int, worse: int, alpha: float = ALPHA) -> int:
    """Return 1 or -1 for the side whose one-sided p is below ``alpha / 2``, else 0; five pairs cannot reach it."""
    for_it, against = one_sided(better, worse)
    if for_it < alpha / 2:
        return 1
    return -1 if against < alpha / 2 else 0


def all_of(parts: Sequence[Part]) -> Finding:
    """Return the finding of a claim that every part is so: it holds if all are, and fails if one is the contrary."""
    sides = [part.side for part in parts if part.decides]
    if all(found > 0 for found in sides):
        return _finding("holds", parts, 1)
    return _finding("fails", parts, -1) if min(sides) < 0 else _finding("not shown", parts, 0)


def any_of(parts: Sequence[Part]) -> Finding:
    """Return the finding of a claim that some part is so.

    It holds if one part is so and none is the contrary, and fails if one is the contrary and none is so.
    The caller divides the level among the parts, for either side.
    """
    sides = {part.side for part in parts if part.decides}
    if sides >= {1, -1}:
        return Finding("not shown", f"the figures contradict each other: {_reasons(parts, {1, -1})}", tuple(parts))
    verdict: Verdict = "holds" if 1 in sides else "fails" if -1 in sides else "not shown"
    return _finding(verdict, parts, {"holds": 1, "fails": -1}.get(verdict, 0))


def beyond(value: float, bound: float) -> float:
    """Return value - bound, or zero if they differ only by rounding, so that rounding does not decide the side."""
    return 0.0 if math.isclose(value, bound, rel_tol=1e-12, abs_tol=1e-15) else value - bound


def _finding(verdict: Verdict, parts: Sequence[Part], telling: int) -> Finding:
    return Finding(verdict, _reasons(parts, {telling}), tuple(parts))


def _reasons(parts: Sequence[Part], sides: set[int]) -> str:
    telling = [part for part in parts if part.decides and part.side in sides]
    single = sum(part.decides for part in parts) == 1
    return "; ".join(part.why if single else f"{part.label}: {part.why}" for part in telling)


def _tail(n: int, least: int) -> float:
    return math.fsum(math.comb(n, k) for k in range(least, n + 1)) / 2.0**n


Value = Callable[[Summary], float]
Direction = Literal["up", "down"]
SIGN = {"up": 1, "down": -1}


def difference(
    label: str,
    unit: str,
    case: Case,
    value: Value,
    direction: Direction,
    *,
    bound: float = 0.0,
    alpha: float = ALPHA,
    exact: bool = False,
) -> Part:
    """Return the paired difference of ``value`` (arm - other); ``exact`` is for counts, which have no t-interval."""
    values = [(value(first), value(second)) for first, second in case.pairs]
    known = [pair for pair in values if all(map(math.isfinite, pair))]
    found = [first - second for first, second in known]
    estimate = replace(_shifted(found, bound), method="sign-flip" if exact else statistics.PAIRED)
    if exact:
        estimate = replace(estimate, low=math.nan, high=math.nan, detectable=math.nan)
    lies = SIGN[direction] * side(found, bound, alpha, exact=exact)
    why = _reason(found, bound, direction, alpha, estimate, unit)
    part = Part(label, unit, direction, estimate, _means(known), lies, why, bound=bound)
    return _guarded(part, case, len(values) - len(known))


def ratio(label: str, case: Case, value: Value, direction: Direction, *, bound: float) -> Part:
    """Return the geometric mean of the pairs' ratios (arm / other), tested on its logarithm.

    The detectable effect is a factor minus one, so that swapped arms give the same figure.
    """
    values = [(value(first), value(second)) for first, second in case.pairs]
    known = [pair for pair in values if all(math.isfinite(v) and v > 0 for v in pair)]
    logs = [math.log(first / second) for first, second in known]
    limit = math.log(bound)
    found = _shifted(logs, limit)
    centre, low, high = (math.exp(x) for x in (found.value, found.low, found.high))
    estimate = Estimate(centre, low, high, found.n, "paired t of logarithms", found.p, math.expm1(found.detectable))
    lies = SIGN[direction] * side(logs, limit)
    why = _reason(logs, limit, direction, ALPHA, estimate, "ratio", shown=bound)
    part = Part(label, "ratio", direction, estimate, _means(known), lies, why, "ratio", bound)
    return _guarded(part, case, len(values) - len(known))


def share(label: str, case: Case, happened: Callable[[Summary], bool]) -> Part:
    """Return the difference of the shares of runs to which something ``happened``; the claim is that fewer did.

    There is no interval. The test is McNemar's exact test, one-sided; ``p`` is that of the arm having fewer.
    """
    both = [(happened(first), happened(second)) for first, second in case.pairs]
    better, worse = sum(b and not a for a, b in both), sum(a and not b for a, b in both)
    fewer, more = one_sided(better, worse)
    n = len(both)
    means = _means([(float(a), float(b)) for a, b in both])
    estimate = Estimate(means[0] - means[1], math.nan, math.nan, n, "McNemar, one-sided (fewer)", fewer)
    lies = exact_side(better, worse)
    told = f"of {n} pairs, {case.other} alone in {better}, {case.arm} alone in {worse}"
    tests = f"exact one-sided p {p_value(fewer)} for fewer, {p_value(more)} for more"
    why = f"{told}; {tests}" + ("" if lies else f", where 2.5 % takes {enough()} such pairs, all of one kind")
    return Part(label, "share of runs", "down", estimate, means, lies, why, "share")


def p_value(value: float) -> str:
    """Return a p-value as text."""
    if math.isnan(value):
        return "–"
    return f"{value:.3f}" if value >= 5e-4 else "< 0.001"


def broken(summaries: Sequence[Summary]) -> str:
    """Return the seeds whose run ended in a non-finite number, as text; empty if none did."""
    seeds = sorted(summary.run.seed for summary in summaries if summary.run.status == "unstable")
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}" if seeds else ""


def _shifted(found: Sequence[float], bound: float) -> Estimate:
    """Return the mean with its 95 % interval; the p-value is of the differences from ``bound``."""
    estimate = statistics.paired(found, [0.0] * len(found))
    return replace(estimate, p=statistics.sign_flip([beyond(value, bound) for value in found]))


def _means(values: Sequence[tuple[float, float]]) -> tuple[float, float]:
    if not values:
        return math.nan, math.nan
    first, second = (math.fsum(column) / len(values) for column in zip(*values, strict=True))
    return first, second


def _guarded(part: Part, case: Case, unknown: int) -> Part:
    """Withhold a verdict with missing pairs, or in favour of an arm with aborted runs."""
    if unknown:
        told = "not measured" if unknown == len(case.pairs) else f"not measured in {unknown} of {len(case.pairs)} pairs"
        return replace(part, side=0, why=told)
    pairs = case.pairs
    favoured = [pair[0 if part.side > 0 else 1] for pair in pairs] if part.side else []
    if seeds := broken(favoured):
        arm = case.arm if part.side > 0 else case.other
        told = f"{arm} broke off in {seeds}, and a shorter run flatters it"
        return replace(part, side=0, why=f"{told} (else {part.why})")
    return part


def _reason(
    found: Sequence[float],
    bound: float,
    direction: Direction,
    alpha: float,
    estimate: Estimate,
    unit: str,
    shown: float | None = None,
) -> str:
    n, limit = len(found), f"{bound if shown is None else shown:g}".replace("-", "−")
    sign = SIGN[direction]
    for_it = sum(sign * (value - bound) > 0 for value in found)
    agree = f"{for_it} of {n} seeds favour the claim"
    if n < enough(alpha):
        return f"{n} pairs of the {enough(alpha)} it takes; {agree}{_reach(estimate, unit)}"
    interval = statistics.mean([value - bound for value in found], 1 - alpha)
    level = f"{100 * (1 - alpha):.3g} % interval"
    where = "above" if interval.low > 0 else "below" if interval.high < 0 else ""
    test = f"sign-flip p {p_value(estimate.p)}"
    if math.isnan(estimate.low):
        return f"{test} over {n} pairs; {agree}"
    if where:
        return f"{level} wholly {where} {limit}, {test} over {n} pairs; {agree}"
    return f"{level} includes {limit}, {test} over {n} pairs; {agree}{_reach(estimate, unit)}"


def _reach(estimate: Estimate, unit: str) -> str:
    if not math.isfinite(estimate.detectable):
        return ""
    reach, name = (100 * estimate.detectable, "%") if unit == "ratio" else (estimate.detectable, unit)
    return f"; detectable {reach:.2g} {name}"
