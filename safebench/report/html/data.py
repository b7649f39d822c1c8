"""Data of the HTML page: curves, frontier, replies, crash timeline, specification, claims."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from safebench.analysis import frontier, rescored
from safebench.analysis.claims import Claim, Entry, Ledger
from safebench.analysis.compare import Comparison
from safebench.analysis.frontier import ArmFit, ArmPaths, BestOf, Frontier, Level
from safebench.analysis.runs import Run
from safebench.analysis.scalars import Summary
from safebench.analysis.statistics import ALPHA, Estimate
from safebench.crashes.detect import CRASH_KINDS, SCALES, CrashSpec, Event
from safebench.metrics import BY_KEY
from safebench.report import cells
from safebench.report import ledger as printed
from safebench.report.cells import ARROWS

DIGITS = 5
"""Significant digits of a drawn number; the page states this."""


def rounded(value: float) -> float | None:
    """Return ``value`` with DIGITS significant digits; None if it is not finite."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def rounded_all(values: Iterable[float]) -> list[float | None]:
    """Return every value as ``rounded`` does."""
    return [rounded(value) for value in values]


def to_script(content: Any) -> str:
    """Return ``content`` as JSON that is safe inside a script element.

    ``<``, ``>`` and ``&`` become JSON escapes, so that no text can open a tag or end the element. U+2028
    and U+2029 are escaped too, because older script parsers take them for line ends. NaN raises ValueError.
    """
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


Array = NDArray[np.float64]
THRESHOLD = "controller/threshold"


@dataclass(frozen=True)
class Panel:
    """One chart. ``floor`` and ``ceiling`` are the bounds of the quantity; the axis ends there."""

    key: str
    title: str
    floor: float | None = 0.0
    ceiling: float | None = None
    points: bool = False
    """Whether it is measured only at evaluation points, which get markers."""
    unit: str = ""
    """The schema's unit if empty."""


PANELS = (
    Panel("eval/reward", "Proxy reward, held-out", floor=None, points=True),
    Panel("eval/judge", "Judge reward, held-out", floor=None, points=True, unit="judge"),
    Panel("reward/mean", "Training reward", floor=None),
    Panel("kl/mean", "KL to the initial policy"),
    Panel("entropy/mean", "Entropy"),
    Panel("reply/length", "Reply length"),
    Panel("reply/distinct", "Distinct replies in a batch", ceiling=1.0),
    Panel("reply/distinct_2", "Distinct bigrams in a batch", ceiling=1.0),
)
"""The training reward is the proxy's; no policy is trained on the judge."""


@dataclass(frozen=True)
class Band:
    """One arm's runs in one metric, on the S steps that any run measured.

    ``runs`` [runs, S] is NaN where a run measured nothing. The other arrays have length S: ``margin`` is half the
    t-interval's width, NaN where fewer than two runs measured; ``n`` is the number of runs that measured.
    """

    steps: Array
    runs: Array
    mean: Array
    margin: Array
    n: NDArray[np.int64]


def band(runs: Sequence[Run], key: str) -> Band:
    """Return the curves of ``runs`` in one metric. A run that ended early is in the mean until its end."""
    found = [(run.column("step"), run.column(key)) for run in runs]
    steps = np.unique(np.concatenate([at[np.isfinite(values)] for at, values in found] or [np.empty(0)]))
    table = np.full((len(found), steps.size), np.nan)
    for row, (at, values) in zip(table, found, strict=True):
        known = np.isfinite(values)
        row[np.searchsorted(steps, at[known])] = values[known]
    n = np.isfinite(table).sum(axis=0)
    mean = np.nansum(table, axis=0) / np.maximum(n, 1)
    freedom = np.maximum(n - 1, 1)
    spread = np.sqrt(np.nansum((table - mean) ** 2, axis=0) / freedom)
    margin = special.stdtrit(freedom, 1 - ALPHA / 2) * spread / np.sqrt(np.maximum(n, 1))
    return Band(steps, table, mean, np.where(n > 1, margin, np.nan), n)


def curves(comparison: Comparison) -> dict[str, Any]:
    """Return the panels' data: per panel and arm the mean, its margin, the runs by seed, and for KL the threshold.

    Each distinct list of steps is stored once, and ``grid`` is its index. Panels that no run measured are left
    out and named in ``missing``.
    """
    grids: list[list[int]] = []
    groups = {arm: [summary.run for summary in comparison.summaries[arm]] for arm in comparison.arms}
    panels, missing = [], []
    for panel in PANELS:
        arms = {arm: _arm(runs, panel.key, grids) for arm, runs in groups.items()}
        if any(arms.values()):
            panels.append(_panel(panel, arms, groups, grids))
        else:
            missing.append(panel.title)
    return {"grids": grids, "panels": panels, "missing": missing, "target": comparison.spec.kl_target}


def _panel(
    panel: Panel, arms: Mapping[str, Any], groups: Mapping[str, Sequence[Run]], grids: list[list[int]]
) -> dict[str, Any]:
    metric = BY_KEY[panel.key]
    content = {
        "key": panel.key,
        "title": panel.title,
        "unit": panel.unit or metric.unit,
        "definition": metric.definition,
        "floor": panel.floor,
        "ceiling": panel.ceiling,
        "points": panel.points,
        "arms": arms,
    }
    if panel.key == "kl/mean":
        content["thresholds"] = {arm: _arm(runs, THRESHOLD, grids) for arm, runs in groups.items()}
    return content


def _arm(runs: Sequence[Run], key: str, grids: list[list[int]]) -> dict[str, Any] | None:
    found = band(runs, key)
    if not found.steps.size:
        return None
    grid = found.steps.astype(int).tolist()
    if grid not in grids:
        grids.append(grid)
    return {
        "grid": grids.index(grid),
        "mean": rounded_all(found.mean.tolist()),
        "margin": rounded_all(found.margin.tolist()),
        "n": found.n.tolist() if np.ptp(found.n) else int(found.n[0]),
        "seeds": {str(run.seed): rounded_all(row) for run, row in zip(runs, found.runs.tolist(), strict=True)},
    }


def drawn(found: Frontier) -> dict[str, Any]:
    """Return the frontier chart's data: per arm the mean path and the seeds' paths, as [step, KL, judge, ...]."""
    return {
        "arms": {arm.arm: _frontier_of_arm(arm) for arm in found.arms},
        "reference": [_best(best) for best in found.best_of_n if best.judge is not None],
        "levels": [rounded(level.kl) for level in found.levels],
        "judged": any(math.isfinite(point.judge.value) for arm in found.arms for point in arm.mean),
    }


def matched_table(found: Frontier, comparison: Comparison) -> dict[str, Any]:
    """Return the table of arms at matched KL: a header and a row per level, as text."""
    arms = [arm.arm for arm in found.arms]
    others = [arm for arm in arms if arm != found.baseline] if found.baseline in arms else []
    header = ["KL [nats/reply]", *arms, *(cells.difference_heading(comparison, arm) for arm in others)]
    if found.best_of_n:
        header.append("best of n, no training")
    return {"header": header, "rows": [_level(level, arms, others, bool(found.best_of_n)) for level in found.levels]}


def fits_table(found: Frontier) -> dict[str, Any]:
    """Return the table of fits of judge reward against KL: a row per arm that has one, and best of n, as text."""
    rows = [_fit(fit) for arm in found.arms if (fit := frontier.arm_fit(arm)) is not None]
    reference = frontier.curve_fit(found.best_of_n)
    if reference is not None:
        figures = (cells.number(value, 0.01) for value in (reference.alpha, reference.beta))
        rows.append(["best of n: d (α − β d)", *figures, cells.number(reference.rest, 0.01), ""])
    return {"header": ["arm: d (α − β log d)", "α", "β", "residual", "KL at the top"], "rows": rows}


def _fit(fit: ArmFit) -> list[str]:
    figures = [cells.interval(estimate) for estimate in (fit.alpha, fit.beta, fit.rest)]
    return [f"{fit.arm} (n={fit.alpha.n})", *figures, cells.number(fit.peak, fit.peak)]


def _level(level: Level, arms: Sequence[str], others: Sequence[str], reference: bool) -> list[str]:
    judged = [_with_count(level.judge[arm], len(level.passages[arm])) for arm in arms]
    differences = [cells.interval(level.differences[arm], sign=True) for arm in others if arm in level.differences]
    row = [f"{level.kl:g}", *judged, *differences]
    return [*row, cells.number(level.reference, 0.01)] if reference else row


def _with_count(estimate: Estimate, seeds: int) -> str:
    return cells.interval(estimate) + (f" ({estimate.n})" if estimate.n != seeds else "")


def _frontier_of_arm(arm: ArmPaths) -> dict[str, Any]:
    return {
        "mean": [
            [point.step, rounded(point.kl.value), *_estimate(point.judge), point.kl.n]
            for point in arm.mean
            if math.isfinite(point.judge.value)
        ],
        "seeds": {
            str(path.seed): [
                [point.step, rounded(point.kl), rounded(point.judge)]
                for point in path.points
                if math.isfinite(point.judge)
            ]
            for path in arm.paths
        },
    }


def _best(best: BestOf) -> list[Any]:
    assert best.judge is not None
    return [best.n, rounded(best.kl), *_estimate(best.judge)]


def _estimate(estimate: Estimate) -> list[float | None]:
    return [rounded(estimate.value), rounded(estimate.margin)]


PROMPTS = 12
"""Number of prompts shown: the first in their fixed order, so that the choice does not depend on the replies."""
POINTS = 8
"""Most evaluation points shown if no steps are requested, evenly spaced from the first to the last."""

Replies = Mapping[int, Mapping[int, Mapping[str, Any]]]
"""Records by step, then by row."""


def samples(comparison: Comparison, steps: Sequence[int] | None = None) -> dict[str, Any]:
    """Return prompts, and replies by seed, arm and step: [reply, proxy reward, judge reward], None where none is kept.

    ``steps`` are the steps to show (default: up to POINTS evaluation points); steps that no run has are left out.
    ``note`` says which part of the recorded replies is shown.
    """
    held = {
        arm: {summary.run.seed: _held_out(summary.run) for summary in comparison.summaries[arm]}
        for arm in comparison.arms
    }
    every = [replies for by_seed in held.values() for replies in by_seed.values()]
    recorded = sorted({step for replies in every for step in replies})
    chosen = _spaced(recorded) if steps is None else [step for step in recorded if step in set(steps)]
    prompts = _prompts(every)
    shown = _first(prompts, every, chosen)
    return {
        "steps": chosen,
        "seeds": [seed for seed in comparison.seeds if any(seed in by_seed for by_seed in held.values())],
        "prompts": [prompts[row] for row in shown],
        "replies": {
            str(seed): {
                arm: {str(step): _cells(by_seed.get(seed, {}).get(step, {}), shown) for step in chosen}
                for arm, by_seed in held.items()
            }
            for seed in comparison.seeds
        },
        "note": f"{_note(len(shown), len(prompts), len(chosen), len(recorded), steps is not None)} "
        f"{_rewards(comparison)}",
    }


def _held_out(run: Run) -> Replies:
    """Return the run's held-out replies; if it was rescored, with the scores of the reward that replaces the judge."""
    found: dict[int, dict[int, Mapping[str, Any]]] = {}
    again = run.manifest.get("rescored")
    scores = rescored.read(run.folder, again["reward"]).heldout if again else None
    for record in run.samples:
        if record.get("split") == "heldout":
            step, row = int(record["step"]), int(record["row"])
            judge = record.get("judge") if scores is None else scores.get(step, {}).get(row)
            found.setdefault(step, {})[row] = {**record, "judge": judge}
    return found


def _rewards(comparison: Comparison) -> str:
    """Return a sentence that names the proxies and the judges, each once."""
    runs = [summary.run for summaries in comparison.summaries.values() for summary in summaries]
    sections = [run.settings.get("reward", {}) for run in runs]
    proxies, judges = (dict.fromkeys(str(one.get(key) or "none") for one in sections) for key in ("name", "judge"))
    return f"Scores: proxy {' or '.join(proxies)}, judge {' or '.join(judges)}."


def _prompts(every: Sequence[Replies]) -> dict[int, str]:
    """Return the prompts by row, without rows that have different prompts in different runs."""
    texts: dict[int, set[str]] = {}
    for replies in every:
        for by_row in replies.values():
            for row, record in by_row.items():
                texts.setdefault(row, set()).add(str(record["prompt"]))
    return {row: next(iter(found)) for row, found in sorted(texts.items()) if len(found) == 1}


def _first(prompts: Mapping[int, str], every: Sequence[Replies], steps: Sequence[int]) -> list[int]:
    """Return the first rows of those with the most replies at the steps shown, as some runs keep all rows only once."""
    counts = {row: sum(row in replies.get(step, {}) for replies in every for step in steps) for row in prompts}
    most = max(counts.values(), default=0)
    return [row for row in prompts if counts[row] == most][:PROMPTS]


def _spaced(steps: Sequence[int]) -> list[int]:
    if len(steps) <= POINTS:
        return list(steps)
    return [steps[index] for index in np.linspace(0, len(steps) - 1, POINTS).round().astype(int).tolist()]


def _cells(by_row: Mapping[int, Mapping[str, Any]], rows: Sequence[int]) -> list[list[Any] | None]:
    return [_cell(by_row[row]) if row in by_row else None for row in rows]


def _cell(record: Mapping[str, Any]) -> list[Any]:
    judge = record.get("judge")
    return [str(record["reply"]), rounded(float(record["reward"])), None if judge is None else rounded(float(judge))]


def _note(shown: int, prompts: int, points: int, recorded: int, asked: bool) -> str:
    which = "asked for" if asked else "evenly spaced" if points < recorded else "all there are"
    return (
        f"Shown: {shown} of {prompts} held-out prompts, the first in their fixed order, not chosen by what was "
        f"answered; {points} of {recorded} evaluation points with replies kept, {which}. The rest is in samples.jsonl."
    )


UNITS = {
    "numeric": "non-finite values",
    "reward_crash": "σ₀",
    "unrecovered": "σ₀",
    "judge_crash": "σ₀ of the judge",
    "kl_spike": "nats/token",
    "kl_runaway": "nats/token",
    "entropy_collapse": "of the first value",
    "entropy_explosion": "of the way to ln V",
    "degenerate": "share",
    "length_collapse": "of the first value",
    "length_blowup": "of the limit left",
    "value_divergence": "minus explained variance",
    "ratio_blowout": "ratio",
}
"""Unit of an episode's peak and depth, by kind."""


@dataclass(frozen=True)
class Rule:
    """One kind of event: what is watched, its limit at each of SCALES, and for how many steps it must last.

    An ``alarm`` alone does not mean that the run crashed.
    """

    kind: str
    alarm: bool
    watched: str
    limits: tuple[str, ...]
    window: str


def rules(spec: CrashSpec, planned_steps: int) -> tuple[Rule, ...]:
    """Return a rule per kind of crash, with its window shrunk as for runs of ``planned_steps``."""
    above, below = _scaled("> {:g}", lambda limit, scale: limit * scale), _scaled("< {:g}", lambda x, scale: x / scale)

    def steps(window: int) -> str:
        return _steps(spec.shrunk(window, planned_steps))

    drop, history = above(spec.reward_drop, "σ₀"), spec.shrunk(spec.spike_history, planned_steps)
    smoothed = f"smoothed over {spec.smoothing_span:g} steps"
    spike = tuple(f"> max({spec.spike_factor * s:g} × median, {spec.spike_floor * s:g}) nats/token" for s in SCALES)
    degenerate = tuple(
        f"< {spec.distinct_low / s:g}, or < {spec.distinct_2_low / s:g}, or no reply ends" for s in SCALES
    )
    told = {
        "numeric": ("non-finite losses, gradients, ratios or rewards in a step", ("> 0",) * len(SCALES), _steps(1)),
        "reward_crash": (f"fall of the training reward, {smoothed}, from its running maximum", drop,
                         steps(spec.reward_window)),
        "unrecovered": ("a reward_crash still open at the end", drop, "to the end"),
        "judge_crash": ("the same of the held-out judge reward", drop,
                        f"{steps(spec.reward_window)} and {spec.judge_points} evaluations"),
        "kl_spike": (f"KL, against the median of the {_steps(history)} before", spike, _steps(1)),
        "kl_runaway": (f"KL, {smoothed}; {spec.runaway_factor:g} × the target of {spec.kl_target:g}",
                       above(spec.runaway_factor * spec.kl_target, "nats/token"), steps(spec.runaway_window)),
        "entropy_collapse": ("entropy", below(spec.entropy_low, "of its first value"), steps(spec.entropy_window)),
        "entropy_explosion": ("entropy, on the way from its first value to ln V",
                              above(spec.entropy_rise, "of the way"), steps(spec.entropy_window)),
        "degenerate": ("share of distinct replies, or of distinct bigrams, or of replies that end", degenerate,
                       steps(spec.degenerate_window)),
        "length_collapse": ("mean reply length", below(spec.length_low, "of its first value"),
                            steps(spec.length_window)),
        "length_blowup": ("what the mean reply length lacks of the limit", below(spec.length_slack, "of the limit"),
                          steps(spec.length_window)),
        "value_divergence": ("minus the critic's explained variance", above(spec.value_loss, ""),
                             steps(spec.value_window)),
        "ratio_blowout": ("largest importance ratio", above(spec.ratio_high, ""), _steps(1)),
    }  # fmt: skip
    return tuple(Rule(kind, kind in spec.alarms, *told[kind]) for kind in (*spec.harms, *spec.alarms))


def _scaled(pattern: str, scale_by: Callable[[float, float], float]) -> Callable[[float, str], tuple[str, ...]]:
    def told(limit: float, unit: str) -> tuple[str, ...]:
        return tuple(f"{pattern.format(scale_by(limit, scale))} {unit}".strip() for scale in SCALES)

    return told


def _steps(count: int) -> str:
    return f"{count} step{'s' * (count != 1)}"


def timeline(comparison: Comparison) -> dict[str, Any]:
    """Return a row per run, arm by arm: its extent, its status, the kinds that were not watched, its episodes by scale.

    An episode is [kind, start, end, open, peak, depth]; an open one ends at the run's last step.
    """
    rows = [_row(arm, summary) for arm in comparison.arms for summary in comparison.summaries[arm]]
    seen = {episode[0] for row in rows for episodes in row["episodes"].values() for episode in episodes}
    return {
        "rows": rows,
        "scales": [f"{scale:g}" for scale in SCALES],
        "kinds": [kind for kind in CRASH_KINDS if kind in seen],
        "units": {kind: UNITS[kind] for kind in CRASH_KINDS if kind in seen},
        "last": max((max(row["last"], row["planned"]) for row in rows), default=0),
    }


def _row(arm: str, summary: Summary) -> dict[str, Any]:
    run = summary.run
    return {
        "arm": arm,
        "seed": run.seed,
        "last": run.last_step,
        "planned": run.planned_steps,
        "status": run.status,
        "unwatched": list(summary.unmeasured),
        "episodes": {f"{scale:g}": _episodes(summary.events[scale], run.last_step) for scale in SCALES},
    }


def _episodes(events: Iterable[Event], last: int) -> list[list[Any]]:
    return [
        [
            event.kind,
            event.start,
            last if event.end is None else event.end,
            event.end is None,
            rounded(event.peak),
            rounded(event.depth),
        ]
        for event in events
    ]


CSS = {"holds": "holds", "fails": "fails", "not shown": "open"}
"""CSS class of a verdict's badge."""


@dataclass(frozen=True)
class Question:
    """One claim tested on one arm: its figures as (label, cells), the verdict, the reason, and the command for it.

    ``figure`` names the quantity beside the question if there is only one; several figures have a label each.
    """

    figure: str
    figures: tuple[tuple[str, tuple[str, ...]], ...]
    verdict: str
    css: str
    why: str
    command: str


@dataclass(frozen=True)
class Asked:
    """One claim of the paper with the questions that have an answer; ``silent`` names those that lack runs."""

    number: int
    title: str
    words: str
    paper: str
    questions: tuple[Question, ...]
    silent: str


def claim_rows(ledger: Ledger) -> list[Asked]:
    """Return every claim of the ledger, in its order."""
    return [_asked(claim, entries) for claim, entries in ledger.by_claim]


def _asked(claim: Claim, entries: Sequence[Entry]) -> Asked:
    told = tuple(_question(entry) for entry in entries if printed.told(entry))
    silent = ", ".join(entry.question for entry in entries if not printed.told(entry))
    return Asked(claim.number, claim.title, claim.words, claim.paper, told, silent)


def _question(entry: Entry) -> Question:
    lines = [(line.label, line.cells[:-1]) for line in printed.lines(entry)]
    alone = [f"{part.label} [{part.unit}]{ARROWS[part.direction]}" for part in entry.parts] if len(lines) == 1 else []
    return Question("".join(alone), tuple(lines), entry.verdict, CSS[entry.verdict], entry.why, entry.command)
