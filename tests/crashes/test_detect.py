"""Crash detectors on synthetic curves: what must trigger, exactly where, and what must not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safebench.crashes.detect import CRASH_KINDS, SCALES, SPEC, Detectors, Event, detect, detect_scales
from safebench.crashes.signals import SPECS
from safebench.metrics import KEYS

LONG = 500  # planned steps from which windows have their full length
VOCABULARY = 1000
Spans = list[tuple[int, int | None]]
KEEP = 19 / 21  # of a moving average with span 20


def table(**columns: Sequence[object]) -> list[dict[str, object]]:
    """Return rows with steps from 1; ``kl_mean`` stands for ``kl/mean``."""
    steps = max(len(values) for values in columns.values())
    keyed = {key.replace("_", "/", 1): values for key, values in columns.items()}
    return [{"step": t + 1, **{key: values[t] for key, values in keyed.items()}} for t in range(steps)]


def found(kind: str, rows: list[dict[str, object]], planned: int = LONG, scale: float = 1.0) -> list[Event]:
    events = detect(rows, planned, 1.0, VOCABULARY, scale, judge_sigma0=1.0, reply_limit=100)
    return [event for event in events if event.kind == kind]


def spans(kind: str, rows: list[dict[str, object]], planned: int = LONG, scale: float = 1.0) -> Spans:
    return [(event.start, event.end) for event in found(kind, rows, planned, scale)]


def unsmoothed(levels: Sequence[float]) -> list[float]:
    """Return the curve whose moving average with span 20 is ``levels``."""
    return [levels[0]] + [(new - KEEP * old) / (1 - KEEP) for old, new in pairwise(levels)]


HIGH, MIDDLE = math.log(VOCABULARY), 0.5 * math.log(VOCABULARY)
AFTER = 30

# kind, column, value in health, value beyond the limit, value on the limit, window
HELD = [
    ("entropy_collapse", "entropy_mean", MIDDLE, 0.19 * MIDDLE, 0.2 * MIDDLE, 50),
    ("entropy_explosion", "entropy_mean", MIDDLE, 0.751 * HIGH, 0.749 * HIGH, 50),
    ("degenerate", "reply_distinct", 1.0, 0.19, 0.2, 20),
    ("degenerate", "reply_distinct_2", 0.9, 0.09, 0.1, 20),
    ("degenerate", "reply_ended", 1.0, 0.0, 0.01, 20),
    ("length_collapse", "reply_length", 40.0, 9.9, 10.0, 50),
    ("length_blowup", "reply_length", 40.0, 98.1, 97.9, 50),
    ("value_divergence", "critic_explained_variance", 0.5, -1.01, -1.0, 50),
]
INSTANT = [
    ("kl_spike", "kl_mean", 0.01, 0.501, 0.5),
    ("kl_spike", "kl_mean", 0.2, 1.01, 0.99),
    ("ratio_blowout", "update_ratio_max", 1.2, 10.01, 10.0),
    ("numeric", "loss_policy", 0.0, math.nan, 1e30),
    ("numeric", "grad_norm", 0.0, math.inf, 1e30),
    ("numeric", "reward_mean", 0.0, -math.inf, -1e30),
]


@pytest.mark.parametrize(("kind", "column", "good", "bad", "limit", "window"), HELD)
def test_held_condition_triggers_once_with_exact_ends(kind, column, good, bad, limit, window):
    rows = table(**{column: [good] * 10 + [bad] * window + [good] * AFTER})
    assert spans(kind, rows) == [(11, 10 + window)]
    assert spans(kind, rows[: 10 + window]) == [(11, None)]
    assert spans(kind, rows[: 9 + window]) == []


@pytest.mark.parametrize(("kind", "column", "good", "bad", "limit", "window"), HELD)
def test_held_condition_near_misses(kind, column, good, bad, limit, window):
    assert spans(kind, table(**{column: [good] * 10 + [limit] * 3 * window})) == []
    broken = [good] * 10 + ([bad] * (window - 1) + [good]) * 3
    assert spans(kind, table(**{column: broken})) == []


@pytest.mark.parametrize(("kind", "column", "good", "bad", "limit"), INSTANT)
def test_instant_condition_triggers_at_its_step(kind, column, good, bad, limit):
    rows = table(**{column: [good] * 120 + [bad] + [good] * 5 + [bad] * 2 + [good] * 5})
    assert spans(kind, rows) == [(121, 121), (127, 128)]
    assert spans(kind, table(**{column: [good] * 120 + [limit] + [good] * 5})) == []


def test_reward_crash_by_hand():
    # Smoothed level n steps after a fall to -10: -10 (1 - KEEP^n), so -0.95 then -1.81: beyond 1 from step 102.
    # Fifty steps down leave -9.933; back at 0, 9.933 KEEP^m is above 1 up to m = 22: the last such step is 172.
    rows = table(reward_mean=[0.0] * 100 + [-10.0] * 50 + [0.0] * 60)
    (event,) = found("reward_crash", rows)
    assert (event.start, event.end) == (102, 172)
    assert event.peak == pytest.approx(10 * (1 - KEEP**50), rel=1e-12)
    assert event.depth == pytest.approx(event.peak - 1.0, rel=1e-12)
    assert spans("unrecovered", rows) == []


def test_reward_crash_needs_its_window_and_more_than_one_sigma():
    for steps, expected in ((19, []), (20, [(51, 70)])):
        levels = [0.0] * 50 + [-1.01] * steps + [0.0] * 30
        assert spans("reward_crash", table(reward_mean=unsmoothed(levels))) == expected
    assert spans("reward_crash", table(reward_mean=unsmoothed([0.0] * 50 + [-0.99] * 200))) == []


def test_drawdown_counts_from_the_running_maximum():
    levels = [0.0] * 20 + [3.0] * 20 + [1.9] * 25 + [2.1] * 20
    assert spans("reward_crash", table(reward_mean=unsmoothed(levels))) == [(41, 65)]
    rising = [0.1 * t for t in range(200)]
    assert spans("reward_crash", table(reward_mean=rising)) == []


def test_unrecovered_is_a_reward_crash_open_at_the_end():
    rows = table(reward_mean=[0.0] * 50 + [-10.0] * 60)
    assert spans("unrecovered", rows) == [(52, None)]
    detectors = Detectors(SPEC, LONG, 1.0, VOCABULARY)
    for row in rows:
        detectors.update(row)
    assert detectors.counts()["unrecovered"] == 0
    detectors.finish()
    assert detectors.counts()["unrecovered"] == 1


def test_kl_runaway_by_hand():
    # From 0.3 to 1.5 nats: 1.5 - 1.2 KEEP^n exceeds 0.9 from n = 7 on (KEEP^7 = 0.496).
    rows = table(kl_mean=[0.3] * 10 + [1.5] * 56)
    assert spans("kl_runaway", rows) == [(17, None)]
    assert spans("kl_runaway", rows[:-1]) == []
    assert spans("kl_runaway", table(kl_mean=[0.899] * 300)) == []


def test_spike_limit_follows_the_median_of_the_steps_before():
    climbing = [0.01 * 1.02**t for t in range(300)]
    assert spans("kl_spike", table(kl_mean=climbing[:200])) == []
    # The history forgets: 100 steps at 0.2 after 100 at 0.01 make the limit 1.0 again.
    assert spans("kl_spike", table(kl_mean=[0.01] * 100 + [0.2] * 100 + [0.9])) == []
    assert spans("kl_spike", table(kl_mean=[0.01] * 100 + [0.2] * 49 + [0.9])) == [(150, None)]


def test_judge_crash_at_evaluation_points():
    def judge(values: list[float], every: int) -> list[dict[str, object]]:
        steps = range(every * (len(values) - 1) + 1)
        return table(eval_judge=[values[t // every] if t % every == 0 else "" for t in steps])

    # Every 20 steps a point: 1 - KEEP^20 = 0.865 of a fall by 2 shows at once, all but 0.02 at the next point.
    assert spans("judge_crash", judge([0.0, 0.0, -2.0, -2.0, 0.0], 20)) == [(41, 61)]
    assert spans("judge_crash", judge([0.0, 0.0, -2.0, 0.0, -2.0, 0.0], 20)) == []
    # Every 5 steps the same fall needs twenty steps: points 16, 21, 26, 31 and 36 at least.
    assert spans("judge_crash", judge([0.0, 0.0, 0.0, *[-4.0] * 4, 3.0], 5)) == []
    assert spans("judge_crash", judge([0.0, 0.0, 0.0, *[-4.0] * 5], 5)) == [(16, None)]
    # One point is never enough, however short the run is planned.
    assert spans("judge_crash", judge([0.0, -9.0], 5), planned=10) == []
    assert spans("judge_crash", judge([0.0, -9.0, -9.0], 5), planned=10) == [(6, None)]


def test_windows_shrink_with_the_plan_and_smoothing_does_not():
    assert [SPEC.shrunk(window, 120) for window in (20, 50, 100)] == [5, 12, 24]
    assert [SPEC.shrunk(20, planned) for planned in (500, 4000, 30, 1)] == [20, 20, 2, 1]
    rows = table(reward_mean=unsmoothed([0.0] * 20 + [-1.01] * 5 + [0.0] * 20))
    assert spans("reward_crash", rows, planned=120) == [(21, 25)]
    assert spans("reward_crash", rows, planned=130) == []


def test_health_has_no_events():
    rows = table(
        reward_mean=[math.sin(t) * 0.5 for t in range(600)],
        kl_mean=[0.1 + 0.05 * math.cos(t) for t in range(600)],
        entropy_mean=[3.0 - 0.001 * t for t in range(600)],
        reply_length=[20 + t % 3 for t in range(600)],
    )
    assert detect(rows, 600, 1.0, VOCABULARY, judge_sigma0=1.0, reply_limit=100) == []


@pytest.mark.parametrize("value", [0.0, 0.05, math.nan, None, ""])
def test_constant_nan_and_empty_curves(value):
    left_out = ("step", "crash/", "controller/phase", "reply/ended")
    keys = [key for key in KEYS if not key.startswith(left_out)]
    rows = [{"step": t, **dict.fromkeys(keys, value)} for t in range(1, 201)]
    kinds = {event.kind for event in detect(rows, 200, 1.0, VOCABULARY, judge_sigma0=1.0, reply_limit=100)}
    assert kinds == ({"numeric"} if isinstance(value, float) and math.isnan(value) else set())


def test_nothing_one_step_and_very_short():
    assert detect([], 100, 1.0, VOCABULARY) == []
    assert detect([{"step": 1}], 1, 1.0, VOCABULARY) == []
    health = {"step": 1, "reward/mean": -5.0, "kl/mean": 0.0, "entropy/mean": 3.0, "reply/length": 9.0}
    health["reply/distinct"] = 1.0
    assert detect([health], 1, 1.0, VOCABULARY, reply_limit=24) == []
    collapsed = [health, {**health, "step": 2, "reply/distinct": 0.03}]
    assert [e.kind for e in detect(collapsed, 2, 1.0, VOCABULARY)] == ["degenerate"]
    assert spans("reward_crash", table(reward_mean=[0.0, -100.0]), planned=2) == [(2, None)]


def test_nan_neither_breaks_nor_ends_an_episode():
    rows = table(reward_mean=[0.0] * 50 + [-10.0] * 25 + [math.nan] * 3)
    assert spans("reward_crash", rows) == [(52, None)]
    assert spans("numeric", rows) == [(76, None)]


def test_open_and_close_are_each_told_once():
    detectors = Detectors(SPEC, LONG, 1.0, VOCABULARY)
    told = [detectors.update(row) for row in table(update_ratio_max=[1.0, 12.0, 15.0, 1.0, 1.0])]
    assert told == [
        [],
        [Event("ratio_blowout", 2, None, 12.0, 2.0)],
        [],
        [Event("ratio_blowout", 2, 3, 15.0, 5.0)],
        [],
    ]
    assert told[3][0].steps == 2
    assert detectors.counts() == {**dict.fromkeys(CRASH_KINDS, 0), "ratio_blowout": 1}


def test_unknown_constants_are_named():
    assert Detectors(SPEC, 100, None, None).unmeasured == (
        "reward_crash",
        "unrecovered",
        "judge_crash",
        "entropy_explosion",
        "length_blowup",
    )
    assert Detectors(SPEC, 100, 1.0, 50, judge_sigma0=0.0, reply_limit=9).unmeasured == ("judge_crash",)
    assert Detectors(SPEC, 100, 1.0, 50, judge_sigma0=1.0, reply_limit=9).unmeasured == ()


def test_rows_out_of_order_are_refused():
    detectors = Detectors(SPEC, 100, 1.0, 50)
    detectors.update({"step": 3})
    for row in ({"step": 3}, {"step": 2}, {"step": ""}, {}):
        with pytest.raises(ValueError, match="rising steps"):
            detectors.update(row)
    with pytest.raises(ValueError, match="scale"):
        Detectors(SPEC, 100, 1.0, 50, 0.0)


@pytest.mark.parametrize(
    ("kind", "column", "good", "bad", "at"),
    [
        ("reward_crash", "reward_mean", 0.0, -1.5, (0.5, 1.0)),
        ("kl_runaway", "kl_mean", 0.1, 2.0, (0.5, 1.0, 2.0)),
        ("kl_spike", "kl_mean", 0.01, 0.3, (0.5,)),
        ("entropy_collapse", "entropy_mean", MIDDLE, 0.15 * MIDDLE, (0.5, 1.0)),
        ("entropy_explosion", "entropy_mean", MIDDLE, HIGH, (0.5, 1.0)),  # twice half-way is never passed
        ("degenerate", "reply_distinct", 1.0, 0.3, (0.5,)),
        ("degenerate", "reply_ended", 1.0, 0.0, (0.5, 1.0, 2.0)),  # exact: no scale
        ("length_collapse", "reply_length", 40.0, 4.0, (0.5, 1.0, 2.0)),
        ("length_blowup", "reply_length", 40.0, 97.0, (0.5,)),
        ("value_divergence", "critic_explained_variance", 0.0, -0.6, (0.5,)),
        ("ratio_blowout", "update_ratio_max", 1.0, 15.0, (0.5, 1.0)),
        ("numeric", "loss_total", 1.0, math.nan, (0.5, 1.0, 2.0)),
    ],
)
def test_scale_moves_each_threshold(kind, column, good, bad, at):
    rows = table(**{column: [good] * 20 + [bad] * 150})
    assert tuple(scale for scale in SCALES if spans(kind, rows, scale=scale)) == at


cell = st.one_of(st.none(), st.floats(-20, 20), st.just(math.nan))
share = st.one_of(st.none(), st.sampled_from([0.0, 0.05, 0.15, 0.5, 1.0]))
row_cells = st.fixed_dictionaries(
    {
        "reward/mean": cell,
        "eval/judge": cell,
        "kl/mean": cell,
        "entropy/mean": cell,
        "reply/length": cell,
        "reply/distinct": share,
        "reply/distinct_2": share,
        "reply/ended": share,
        "critic/explained_variance": cell,
        "update/ratio_max": cell,
        "loss/total": cell,
    }
)
curves = st.lists(row_cells, max_size=40).map(lambda rows: [{"step": t + 1, **row} for t, row in enumerate(rows)])
plans = st.sampled_from([1, 40, 120, 2000])


@given(curves, plans)
def test_whole_file_equals_row_by_row(rows, planned):
    detectors = Detectors(SPEC, planned, 1.0, VOCABULARY, judge_sigma0=1.0, reply_limit=100)
    told = [event for row in rows for event in detectors.update(row)]
    events = [event for event in told if event.end is not None] + detectors.finish()
    assert events == detect(rows, planned, 1.0, VOCABULARY, judge_sigma0=1.0, reply_limit=100)
    assert detectors.counts() == {kind: sum(event.kind == kind for event in events) for kind in CRASH_KINDS}
    scaled = detect_scales(rows, planned, 1.0, VOCABULARY, judge_sigma0=1.0, reply_limit=100)
    assert scaled == {s: detect(rows, planned, 1.0, VOCABULARY, s, judge_sigma0=1.0, reply_limit=100) for s in SCALES}


@given(curves, plans)
def test_severe_episodes_lie_within_milder_ones(rows, planned):
    """Steps in a crash shrink with the scale; the number of episodes need not, for two may merge into one."""
    scaled = detect_scales(rows, planned, 1.0, VOCABULARY, judge_sigma0=1.0, reply_limit=100)
    for mild, severe in ((0.5, 1.0), (1.0, 2.0)):
        for event in scaled[severe]:
            assert any(
                other.kind == event.kind
                and other.start <= event.start
                and (other.end or math.inf) >= (event.end or math.inf)
                and other.depth >= event.depth
                for other in scaled[mild]
            )


@given(curves, plans, st.integers(-8, 8))
def test_reward_and_sigma0_rescale_together(rows, planned, power):
    factor = 2.0**power  # exact in floating point, so the events must be equal to the last bit
    rescaled = [
        {**row, **{key: None if row[key] is None else row[key] * factor for key in ("reward/mean", "eval/judge")}}
        for row in rows
    ]
    plain = detect(rows, planned, 1.0, VOCABULARY, judge_sigma0=2.0, reply_limit=100)
    assert plain == detect(rescaled, planned, factor, VOCABULARY, judge_sigma0=2.0 * factor, reply_limit=100)


@given(curves)
def test_strings_of_a_csv_give_the_same_events(rows):
    written = [{key: "" if value is None else repr(value) for key, value in row.items()} for row in rows]
    assert detect(written, 40, 1.0, VOCABULARY, reply_limit=9) == detect(rows, 40, 1.0, VOCABULARY, reply_limit=9)


def test_thresholds_are_the_specification():
    assert replace(SPEC) == SPEC
    assert (SPEC.version, SPEC.smoothing_span, SPEC.reward_drop, SPEC.kl_target) == (2, 20.0, 1.0, 0.3)
    for version, spec in SPECS.items():  # kept counts of one version serve the other
        assert replace(spec, version=SPEC.version, harms=SPEC.harms) == SPEC and spec.version == version


def test_harms_and_alarms_share_all_kinds():
    assert sorted((*SPEC.harms, *SPEC.alarms)) == sorted(CRASH_KINDS) and SPECS[1].alarms == ()
    assert [SPEC.crashed(kinds) for kinds in ([], ["kl_spike"], ["kl_spike", "degenerate"])] == [False, False, True]
    assert [SPECS[1].crashed(kinds) for kinds in ([], ["kl_spike"])] == [False, True]
