"""Every kind of crash by hand: start, end, peak and depth; what must not trigger it; what was never watched."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from safebench.crashes.detect import CRASH_KINDS, SPEC, Detectors, Event, detect, survey
from safebench.crashes.signals import PARTS, Signals
from safebench.metrics import KEYS

LONG, LIMIT = 500, 100
VOCABULARY = 1000
TOP = math.log(VOCABULARY)
KEEP = 19 / 21
Rows = list[dict[str, object]]


def rows(curves: dict[str, Sequence[object]], every: int = 1) -> Rows:
    """Return a row for each value, the first at step 1, then one every so many steps."""
    length = max(map(len, curves.values()))
    return [{"step": 1 + every * t, **{key: values[t] for key, values in curves.items()}} for t in range(length)]


def found(table: Rows, kind: str, planned: int = LONG, scale: float = 1.0) -> list[Event]:
    events = detect(table, planned, 1.0, VOCABULARY, scale, judge_sigma0=1.0, reply_limit=LIMIT)
    return [event for event in events if event.kind == kind]


def held(key: str, good: float, before: int, *bad: tuple[float, int], after: int = 5) -> dict[str, Sequence[object]]:
    return {key: [good] * before + [value for value, count in bad for _ in range(count)] + [good] * after}


# kind, curves, distance of rows in steps, start, end, peak, depth: all worked by hand
RAN = 1.5 - 1.2 * KEEP**60  # sixty steps after a jump from 0.3 to 1.5; x KEEP^5 is above 0.9, x KEEP^6 is not
FELL = 2 * (1 - KEEP**40)  # two points, forty steps, after a fall by 2
BY_HAND = [
    ("numeric", {"loss/total": [0, 0, math.nan, math.inf, 0], "grad/norm": [1, 1, math.inf, 1, 1]}, 1, 3, 4, 2, 2),
    ("reward_crash", held("reward/mean", 0.0, 100, (-10.0, 50), after=60), 1, 102, 172, 10 * (1 - KEEP**50),
     10 * (1 - KEEP**50) - 1),
    ("judge_crash", {"eval/judge": [0.0, 0.0, -2.0, -2.0, 0.0]}, 20, 41, 61, FELL, FELL - 1),
    ("kl_spike", held("kl/mean", 0.2, 10, (1.5, 1), (3.0, 1)), 1, 11, 12, 3.0, 2.0),
    ("kl_runaway", {"kl/mean": [0.3] * 10 + [1.5] * 60 + [0.0] * 9}, 1, 17, 75, RAN, RAN - 0.9),
    ("entropy_collapse", held("entropy/mean", 4.0, 10, (0.4, 49), (0.2, 1)), 1, 11, 60, 0.05, 0.15),
    ("entropy_explosion", held("entropy/mean", TOP / 2, 10, (0.8 * TOP, 10), (0.9 * TOP, 40)), 1, 11, 60, 0.8, 0.3),
    ("degenerate", held("reply/distinct", 1.0, 10, (0.15, 9), (0.05, 11)), 1, 11, 30, 0.05, 0.15),
    ("degenerate", held("reply/distinct_2", 1.0, 10, (0.09, 9), (0.02, 11)), 1, 11, 30, 0.02, 0.08),
    ("degenerate", held("reply/ended", 1.0, 10, (0.0, 20)), 1, 11, 30, 0.0, 0.0),
    ("length_collapse", held("reply/length", 40.0, 10, (8.0, 25), (4.0, 25)), 1, 11, 60, 0.1, 0.15),
    ("length_blowup", held("reply/length", 40.0, 10, (99.0, 49), (100.0, 1)), 1, 11, 60, 0.0, 0.02),
    ("value_divergence", held("critic/explained_variance", 0.0, 10, (-3.0, 1), (-1.5, 49)), 1, 11, 60, 3.0, 2.0),
    ("ratio_blowout", held("update/ratio_max", 1.0, 10, (12.0, 1), (30.0, 1), (11.0, 1)), 1, 11, 13, 30.0, 20.0),
]  # fmt: skip
WINDOWS = {
    **{"reward_crash": 20, "judge_crash": 20, "degenerate": 20},
    **dict.fromkeys(
        ("kl_runaway", "entropy_collapse", "entropy_explosion", "length_collapse", "length_blowup", "value_divergence"),
        50,
    ),
}


@pytest.mark.parametrize(("kind", "curves", "every", "start", "end", "peak", "depth"), BY_HAND)
def test_event_by_hand(kind, curves, every, start, end, peak, depth):
    table = rows(curves, every)
    (event,) = found(table, kind)
    assert (event.start, event.end) == (start, end)
    assert (event.peak, event.depth) == pytest.approx((peak, depth), rel=1e-9, abs=1e-12)
    assert event.steps == end - start + 1 >= WINDOWS.get(kind, 1)
    # Cut off at its last step it is open, with the same peak; cut off before its window is full it is none.
    (open_,) = found([row for row in table if row["step"] <= end], kind)
    assert (open_.start, open_.end, open_.peak, open_.depth) == (start, None, event.peak, event.depth)
    assert found([row for row in table if row["step"] < start + WINDOWS.get(kind, 1) - 1], kind) == []


def test_the_table_has_every_kind():
    assert {case[0] for case in BY_HAND} | {"unrecovered"} == set(CRASH_KINDS)


def test_unrecovered_has_the_reward_crash_it_follows():
    table = rows({"reward/mean": [0.0] * 100 + [-10.0] * 50})
    (crash,), (left,) = found(table, "reward_crash"), found(table, "unrecovered")
    assert (crash.start, crash.end) == (102, None)
    assert (left.start, left.end, left.peak, left.depth) == (102, None, crash.peak, crash.depth)


def test_one_degenerate_episode_may_pass_from_one_share_to_another():
    table = rows({"reply/distinct": [1.0] * 5 + [0.1] * 10 + [1.0] * 15, "reply/distinct_2": [1.0] * 15 + [0.08] * 15})
    (event,) = found(table, "degenerate")
    assert (event.start, event.end, event.peak, event.depth) == (6, None, 0.1, 0.1)
    apart = rows({"reply/distinct": [0.1] * 15 + [1.0] * 15, "reply/distinct_2": [1.0] * 16 + [0.08] * 14})
    assert found(apart, "degenerate") == []


def test_the_worst_share_is_the_peak():
    table = rows({"reply/distinct": [1.0] + [0.19] * 20, "reply/distinct_2": [1.0] + [0.02] * 20})
    (event,) = found(table, "degenerate")
    assert (event.peak, event.depth) == pytest.approx((0.02, 0.08))


def test_the_history_of_a_spike_is_a_hundred_steps():
    # Of the last hundred, 50 at 0.01 and 50 at 0.3: median 0.155, limit 0.775. With one more: 0.5; with one less: 1.5.
    for value, starts in ((0.77, []), (0.78, [102])):
        table = rows({"kl/mean": [0.01] * 51 + [0.3] * 50 + [value]})
        assert [event.start for event in found(table, "kl_spike")] == starts


FAR = 10**6  # steps after which the moving average has forgotten: KEEP^FAR is 0


@pytest.mark.parametrize(
    ("kind", "key", "first", "limit", "beyond"),
    [
        ("reward_crash", "reward/mean", 0.0, -1.0, math.nextafter(-1.0, -2.0)),
        ("judge_crash", "eval/judge", 0.0, -1.0, math.nextafter(-1.0, -2.0)),
        ("kl_runaway", "kl/mean", 0.0, 3.0 * 0.3, math.nextafter(3.0 * 0.3, 1.0)),
        ("kl_spike", "kl/mean", 0.0, 0.5, math.nextafter(0.5, 1.0)),
        ("entropy_collapse", "entropy/mean", 1.0, 0.2, math.nextafter(0.2, 0.0)),
        ("entropy_explosion", "entropy/mean", 0.0, 0.5 * TOP, 0.5 * TOP * (1 + 1e-15)),
        ("degenerate", "reply/distinct", 1.0, 0.2, math.nextafter(0.2, 0.0)),
        ("degenerate", "reply/distinct_2", 1.0, 0.1, math.nextafter(0.1, 0.0)),
        ("degenerate", "reply/ended", 1.0, 5e-324, 0.0),
        ("length_collapse", "reply/length", 40.0, 10.0, math.nextafter(10.0, 0.0)),
        ("length_blowup", "reply/length", 40.0, 98.0, 98.0 + 1e-12),
        ("value_divergence", "critic/explained_variance", 0.0, -1.0, math.nextafter(-1.0, -2.0)),
        ("ratio_blowout", "update/ratio_max", 1.0, 10.0, math.nextafter(10.0, 11.0)),
    ],
)
def test_on_the_limit_is_not_beyond_it(kind, key, first, limit, beyond):
    for value, expected in ((limit, 0), (beyond, 1)):
        table = [{"step": 1, key: first}, *({"step": FAR + t, key: value} for t in range(60))]
        assert len(found(table, kind)) == expected


def test_the_shrunk_plan_needs_the_shrunk_windows():
    # 120 planned steps: 20 -> 4.8 -> 5, 50 -> 12.
    for kind, curves, window in (
        ("degenerate", {"reply/distinct": [1.0] * 3 + [0.1] * 12}, 5),
        ("value_divergence", {"critic/explained_variance": [0.0] * 3 + [-2.0] * 12}, 12),
    ):
        table = rows(curves)
        assert len(found(table[: 3 + window], kind, 120)) == 1
        assert found(table[: 2 + window], kind, 120) == []


# Curves that must trigger nothing


@pytest.mark.parametrize("kind", [kind for kind in CRASH_KINDS if kind in PARTS])
@pytest.mark.parametrize("length", [1, 2, 60])
def test_empty_and_nan_curves_trigger_no_kind_but_numeric(kind, length):
    for value in (None, "", math.nan, "nan"):
        curves = {key: [value] * length for keys in PARTS[kind].values() for key in keys}
        events = detect(rows(curves), LONG, 1.0, VOCABULARY, judge_sigma0=1.0, reply_limit=LIMIT)
        assert {event.kind for event in events} <= {"numeric"}


@pytest.mark.parametrize("case", BY_HAND)
def test_constant_curves_at_health_and_single_steps_trigger_nothing(case):
    kind, curves, every, *_ = case
    first = {key: [values[0]] * 300 for key, values in curves.items()}
    assert found(rows(first, every), kind) == []
    worst = {key: [values[len(values) // 2]] for key, values in curves.items()}
    if kind not in ("numeric", "kl_spike", "ratio_blowout"):  # these count single steps
        assert found(rows(worst), kind) == []


def test_a_constant_curve_is_its_own_first_value():
    # A run that begins collapsed has not collapsed: entropy and length are measured against their first values.
    flat = {"entropy/mean": [0.01] * 200, "reply/length": [1.0] * 200, "reward/mean": [-9.0] * 200}
    assert detect(rows(flat), LONG, 1.0, VOCABULARY, reply_limit=LIMIT) == []


def test_nan_is_not_measured():
    # Not the first value, not in the history, not on the moving average, not a step within the limit.
    blank = [math.nan]
    assert len(found(rows({"entropy/mean": blank + [4.0] + [0.4] * 50}), "entropy_collapse")) == 1
    assert len(found(rows({"reply/length": blank + [40.0] + [4.0] * 50}), "length_collapse")) == 1
    assert [e.start for e in found(rows({"kl/mean": [0.2] * 3 + blank * 9 + [1.01]}), "kl_spike")] == [13]
    assert found(rows({"kl/mean": [0.2] * 3 + blank * 9 + [0.99]}), "kl_spike") == []
    (event,) = found(rows({"reply/distinct": [1.0] + [0.1] * 10 + blank * 3 + [0.1] * 7 + [1.0]}), "degenerate")
    assert (event.start, event.end) == (2, 21)
    for value in (math.nan, math.inf, -math.inf):
        assert found(rows({"update/ratio_max": [1.0, value, 1.0]}), "ratio_blowout") == []
    infinite = rows({"reward/mean": [0.0] * 5 + [math.inf] + [0.0] * 50})
    assert found(infinite, "reward_crash") == [] and [e.start for e in found(infinite, "numeric")] == [6]


def test_a_gap_counts_as_steps_and_the_last_measured_step_is_the_end():
    first = {"step": 1, "reply/distinct": 1.0}
    table = [first] + [{"step": s, "reply/distinct": 0.1} for s in (2, 6, 21)] + [{"step": 31, "reply/distinct": 1.0}]
    assert [(e.start, e.end) for e in found(table, "degenerate")] == [(2, 21)]
    assert found([first] + [{"step": s, "reply/distinct": 0.1} for s in (2, 6, 20)], "degenerate") == []


# What was never watched


def test_nothing_measured_is_nothing_watched():
    for table in ([], rows({key: [None] * 5 for key in KEYS if key != "step"})):
        seen = survey(table, LONG, 1.0, VOCABULARY, judge_sigma0=1.0, reply_limit=LIMIT)
        assert tuple(blind.kind for blind in seen.blind) == CRASH_KINDS
        assert all(blind.wholly for blind in seen.blind) and seen.events == {0.5: [], 1.0: [], 2.0: []}


def test_everything_measured_once_is_everything_watched():
    keys = {key for parts in PARTS.values() for keys in parts.values() for key in keys}
    table = rows({key: [None, 0.5, None] for key in keys})
    constants = {"judge_sigma0": 1.0, "reply_limit": LIMIT}
    assert survey(table, LONG, 1.0, VOCABULARY, **constants).blind == ()
    detectors = Detectors(SPEC, LONG, 1.0, VOCABULARY, **constants)
    assert len(detectors.blind) == len(CRASH_KINDS)  # before the first row
    for row in table:
        detectors.update(row)
    assert detectors.blind == ()


@pytest.mark.parametrize("kind", CRASH_KINDS)
def test_an_empty_column_makes_its_kinds_unwatched_and_no_others(kind):
    source = "reward_crash" if kind == "unrecovered" else kind
    gone = {key for keys in PARTS[source].values() for key in keys}
    kept = {key for parts in PARTS.values() for keys in parts.values() for key in keys} - gone
    seen = survey(rows({key: [0.5, 0.5] for key in kept}), LONG, 1.0, VOCABULARY, judge_sigma0=1.0, reply_limit=LIMIT)
    blind = {found.kind for found in seen.blind if found.wholly}
    shares = {other for other, parts in PARTS.items() if {k for keys in parts.values() for k in keys} <= gone}
    assert kind in blind
    assert blind == shares | ({"unrecovered"} if "reward_crash" in shares else set())


def test_what_is_missing_is_named():
    table = rows(
        {
            "reward/mean": [0.0] * 3,
            "reply/ended": [1.0] * 3,
            "reply/distinct": [math.nan] * 3,
            "kl/mean": [math.nan] * 3,
            "entropy/mean": [0.0] * 3,
        }
    )
    blind = {name: (reasons, wholly) for name, reasons, wholly in survey(table, LONG, None, None).blind}
    assert blind["numeric"] == (("no losses", "no gradients", "no ratios"), False)
    assert blind["degenerate"] == (("no reply/distinct", "no reply/distinct_2"), False)
    assert blind["reward_crash"] == blind["unrecovered"] == (("no sigma0",), True)
    assert blind["judge_crash"] == (("no judge_sigma0",), True)
    assert blind["length_blowup"] == (("no reply limit",), True)
    assert blind["kl_spike"] == (("no kl/mean",), True)  # NaN is no measurement of KL
    assert blind["entropy_collapse"] == (("no entropy/mean",), True)  # nothing is a fifth of nothing
    cells = {"loss/total": [math.nan], "grad/norm": [1], "update/ratio_max": [1], "reward/mean": [1], "kl/mean": [1]}
    broken = survey(rows(cells), 9, 1.0, 9).blind
    assert "numeric" not in {found.kind for found in broken}  # a NaN loss is just what numeric watches


def test_what_the_untouched_policy_did_already_is_not_watched():
    table = rows(
        {
            "reply/length": [100.0] * 60,  # a base model that never writes its end token
            "reply/ended": [0.0] * 60,
            "reply/distinct": [1.0] * 30 + [0.1] * 30,
            "reply/distinct_2": [1.0] * 60,
        }
    )
    seen = survey(table, LONG, 1.0, VOCABULARY, reply_limit=LIMIT)
    blind = {name: (reasons, wholly) for name, reasons, wholly in seen.blind}
    assert blind["length_blowup"] == (("reply/length beyond its limit before training",), True)
    assert blind["degenerate"] == (("reply/ended beyond its limit before training",), False)
    assert [(e.kind, e.start) for e in seen.events[1.0]] == [("degenerate", 31)]  # its other shares are watched
    assert {e.kind for events in seen.events.values() for e in events} == {"degenerate"}
    below = rows({"reply/length": [97.0] + [100.0] * 60})
    assert [e.start for e in found(below, "length_blowup")] == [2]
    detectors = Detectors(SPEC, LONG, 1.0, VOCABULARY, judge_sigma0=1.0, reply_limit=LIMIT)
    assert detectors.beyond_before_training == ()
    detectors.update(table[0])
    assert [found.kind for found in detectors.beyond_before_training] == ["degenerate", "length_blowup"]


# Properties

value = st.one_of(st.none(), st.floats(-20, 20), st.just(math.nan))
part = st.one_of(st.none(), st.sampled_from([0.0, 0.05, 0.15, 0.5, 1.0]))
columns = {"reward/mean": value, "eval/judge": value, "kl/mean": value, "entropy/mean": value, "reply/length": value}
columns |= {"critic/explained_variance": value, "update/ratio_max": value, "loss/total": value}
columns |= {"reply/distinct": part, "reply/distinct_2": part, "reply/ended": part}
tables = st.lists(st.fixed_dictionaries(columns), max_size=40).map(
    lambda cells: [{"step": t + 1, **row} for t, row in enumerate(cells)]
)
plans = st.sampled_from([1, 40, 120, 2000])


@given(tables, plans, st.floats(0.05, 20.0), st.floats(1.0, 20.0))
def test_crashed_at_one_scale_is_crashed_at_every_milder_one(table, planned, scale, factor):
    severe = {
        event.kind for event in detect(table, planned, 1.0, VOCABULARY, scale * factor, judge_sigma0=1.0, reply_limit=9)
    }
    mild = {event.kind for event in detect(table, planned, 1.0, VOCABULARY, scale, judge_sigma0=1.0, reply_limit=9)}
    assert severe <= mild


@given(tables, st.integers(-1000, 1000), st.floats(0.125, 8.0), st.integers(1, 60))
def test_reward_may_be_shifted_and_rescaled_with_its_sigma(table, shift, factor, planned):
    moved = [
        {**row, **{k: None if row[k] is None else factor * (row[k] + shift) for k in ("reward/mean", "eval/judge")}}
        for row in table
    ]
    plain, other = (
        [
            reading
            for row in given_rows
            for reading in signals.read(row["step"], row)
            if reading.kind in ("reward_crash", "judge_crash")
        ]
        for given_rows, signals in (
            (table, Signals(SPEC, planned, 0.5, VOCABULARY, 2.0, LIMIT)),
            (moved, Signals(SPEC, planned, 0.5 * factor, VOCABULARY, 2.0 * factor, LIMIT)),
        )
    )
    assert [r.value for r in other] == pytest.approx([r.value for r in plain], rel=1e-9, abs=1e-9)
    assume(all(abs(reading.value - reading.limit) > 1e-8 for reading in plain))  # no tie that rounding decides
    one = detect(table, planned, 0.5, VOCABULARY, judge_sigma0=2.0, reply_limit=LIMIT)
    two = detect(moved, planned, 0.5 * factor, VOCABULARY, judge_sigma0=2.0 * factor, reply_limit=LIMIT)
    assert [(e.kind, e.start, e.end) for e in one] == [(e.kind, e.start, e.end) for e in two]


@given(tables, plans)
def test_what_has_an_event_was_watched(table, planned):
    seen = survey(table, planned, 1.0, VOCABULARY, judge_sigma0=1.0, reply_limit=LIMIT)
    unwatched = {blind.kind for blind in seen.blind if blind.wholly}
    assert not unwatched & {event.kind for events in seen.events.values() for event in events}
