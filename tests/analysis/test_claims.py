"""The claims one by one: the rule of verdicts, and what each measuring function says of cases worked by hand."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safebench import config
from safebench.analysis.claims import CLAIMS, questions
from safebench.analysis.claims.questions import MATCHED_TO
from safebench.analysis.claims.verdicts import Case, Part, all_of, any_of, enough, exact_side, one_sided, side
from safebench.analysis.scalars import summarise
from safebench.analysis.statistics import Estimate
from safebench.crashes.inert import inert_in, never_acted
from safebench.crashes.signals import Blind
from tests.support.claims_runs import (
    JUDGE_SIGMA0,
    SIGMA0,
    by_figure,
    case,
    folder,
    jump,
    ramp,
    repeated,
    steady,
    summary,
    with_settings,
)

SIX = range(6)
MIRROR = {"holds": "fails", "fails": "holds", "not shown": "not shown"}
SPREAD = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06)


def sides(finding):
    return [part.side for part in finding.parts if part.decides]


# The rule


@pytest.mark.parametrize(
    ("differences", "expected", "exact"),
    [
        ([1, 2, 3, 4, 5, 6], 1, 1),  # p = 2/64; t-interval 3.5 -+ 1.96
        ([-1, -2, -3, -4, -5, -6], -1, -1),
        ([1, 2, 3, 4, 5], 0, 0),  # p = 2/32
        ([0.1, 0.1, 0.1, 0.1, 0.1, 10], 0, 1),  # p = 2/64, but the t-interval is 1.75 -+ 4.24
        ([-0.01, 1, 1, 1, 1, 1], 0, 0),  # t-interval 0.83 -+ 0.43, but p = 4/64
        ([-0.01, 1, 1, 1, 1, 1, 1, 1], 1, 1),  # p = 4/256
        ([2, 2, 2, 2, 2, 2], 1, 1),
        ([0, 0, 0, 0, 0, 0], 0, 0),
        ([], 0, 0),
    ],
)
def test_both_tests_must_say_so(differences, expected, exact):
    assert side(differences) == expected
    assert side(differences, exact=True) == exact


def test_the_bound_moves_both_tests():
    differences = [0.9, 1.0, 1.1, 1.2, 1.0, 0.9]  # t-interval 1.017 -+ 0.122
    assert [side(differences, bound) for bound in (0.0, 0.85, 0.95, 1.2, 1.3)] == [1, 1, 0, 0, -1]
    # 1.2 is above the t-interval, but one difference is on it: five below give p = 4/64.


@given(st.lists(st.floats(-3, 3), max_size=9), st.floats(-2, 2), st.booleans())
def test_swapped_arms_turn_the_side_round(differences, bound, exact):
    swapped = [-difference for difference in differences]
    assert side(swapped, -bound, exact=exact) == -side(differences, bound, exact=exact)


@pytest.mark.parametrize(
    "sizes", [(1, 2, 3, 4, 5, 6), (1, 1, 1, 1, 1, 1), (0.1, 0.1, 0.1, 0.1, 0.1, 9), (1, 2, 3, 4, 5, 6, 7)]
)
@pytest.mark.parametrize("exact", [False, True])
def test_chance_alone_gives_a_verdict_at_most_one_time_in_twenty(sizes, exact):
    """Where there is no difference every pattern of signs is as likely: count those that would decide."""
    patterns = list(itertools.product((1, -1), repeat=len(sizes)))
    found = [side([a * b for a, b in zip(sizes, signs, strict=True)], exact=exact) for signs in patterns]
    assert found.count(1) == found.count(-1) <= 0.025 * len(patterns)
    assert found.count(1) > 0 or (not exact and max(sizes) == 9)


def test_rounding_takes_no_side():
    assert side([0.1 + 0.2 - 0.3] * 6) == side([1.1 * 1.1] * 6, 1.21) == 0


def test_how_many_pairs_it_takes():
    assert (enough(), enough(0.05 / 3), enough(0.5)) == (6, 7, 3)


@pytest.mark.parametrize(
    ("better", "worse", "p", "expected"),
    [(6, 0, 1 / 64, 1), (5, 0, 1 / 32, 0), (0, 6, 1.0, -1), (7, 1, 9 / 256, 0), (9, 1, 11 / 1024, 1), (0, 0, 1.0, 0)],
)
def test_the_exact_one_sided_test(better, worse, p, expected):
    assert one_sided(better, worse)[0] == p
    assert exact_side(better, worse) == expected and exact_side(worse, better) == -expected


def part(side_, decides=True):
    return Part("x", "u", "up", Estimate(0, 0, 0, 6, "t"), (0, 0), side_, f"why {side_}", decides=decides)


@pytest.mark.parametrize(
    ("found", "every", "some"),
    [
        ((1, 1), "holds", "holds"),
        ((1, 0), "not shown", "holds"),
        ((1, -1), "fails", "not shown"),
        ((0, 0), "not shown", "not shown"),
        ((0, -1), "fails", "fails"),
    ],
)
def test_several_figures_make_one_verdict(found, every, some):
    parts = [*map(part, found), part(-1, decides=False)]
    assert (all_of(parts).verdict, any_of(parts).verdict) == (every, some)


def test_the_reason_is_of_the_figures_that_decide():
    assert all_of([part(1), part(-1)]).why == "x: why -1"
    assert all_of([part(1), part(0)]).why == "x: why 0"
    assert all_of([part(1), part(-1, decides=False)]).why == "why 1"


# Claims 1 and 10: one figure


@pytest.mark.parametrize(
    ("measure", "key", "better"), [(questions.reward, "train_reward", 1), (questions.volatility, "volatility", -1)]
)
def test_one_figure_holds_fails_and_is_not_shown(measure, key, better):
    base = [3.0] * 6
    up = [3.0 + better * x for x in SPREAD]
    assert measure(by_figure(key, up, base)).verdict == "holds"
    assert measure(by_figure(key, base, up)).verdict == "fails"
    assert measure(by_figure(key, up[:5], base[:5])).verdict == "not shown"
    assert measure(by_figure(key, [*up[:5], 3.0 - better * 0.05], base)).verdict == "not shown"


@settings(max_examples=30)
@given(st.lists(st.tuples(*[st.sampled_from([2.9, 3.0, 3.05, 3.2])] * 2), min_size=1, max_size=8))
def test_no_arm_is_favoured(values):
    first, second = ([pair[i] for pair in values] for i in (0, 1))
    for measure, key in ((questions.reward, "train_reward"), (questions.volatility, "volatility")):
        assert measure(by_figure(key, second, first)).verdict == MIRROR[measure(by_figure(key, first, second)).verdict]


def test_reward_is_in_sigma_and_per_cent_only_where_the_opponents_mean_is_well_away_from_zero():
    base = [2.0 * SIGMA0, 1.0 * SIGMA0, 1.5 * SIGMA0]
    first, second = questions.reward(by_figure("train_reward", [1.0515 * x for x in base], base)).parts
    assert first.estimate.value == pytest.approx(0.0515 * 1.5) and first.means[1] == pytest.approx(1.5)
    assert (second.unit, second.decides) == ("%", False) and second.estimate.value == pytest.approx(5.15)
    for low in (0.99 * SIGMA0, -2.0 * SIGMA0):
        assert len(questions.reward(by_figure("train_reward", base, [*base[:2], low])).parts) == 1


def test_five_pairs_still_show_figure_interval_direction_and_reach():
    found = questions.reward(by_figure("train_reward", [3.2, 3.1, 3.3, 3.2, 2.9], [3.0] * 5))
    estimate = found.parts[0].estimate
    assert found.verdict == "not shown" and estimate.low < estimate.value < estimate.high
    assert "5 pairs of the 6 it takes; 4 of 5 seeds favour the claim; detectable 0.13 σ₀" in found.why


# What is missing, and what broke


def test_a_figure_that_some_pair_lacks_gives_no_verdict():
    up = [3.0 + x for x in (*SPREAD, 0.07)]
    whole = by_figure("train_reward", up, [3.0] * 7)
    assert questions.reward(whole).verdict == "holds"
    found = questions.reward(by_figure("train_reward", [*up[:6], math.nan], [3.0] * 7))
    assert found.verdict == "not shown" and "not measured in 1 of 7 pairs" in found.why
    assert found.parts[0].estimate.n == 6
    nothing = questions.volatility(by_figure("volatility", [math.nan] * 6, [0.2] * 6))
    assert (nothing.verdict, nothing.why) == ("not shown", "not measured")


def test_no_verdict_speaks_for_an_arm_whose_runs_broke_off():
    up, base = [3.0 + x for x in SPREAD], [3.0] * 6
    good = [summary(seed, train_reward=value) for seed, value in enumerate(up)]
    poor = [summary(seed, train_reward=value) for seed, value in enumerate(base)]
    broken_good = [*good[:5], replace(good[5], run=replace(good[5].run, status="unstable"))]
    broken_poor = [*poor[:5], replace(poor[5], run=replace(poor[5].run, status="unstable"))]
    for first, second, verdict in (
        (good, poor, "holds"),
        (broken_good, poor, "not shown"),
        (good, broken_poor, "holds"),  # it stays in
        (poor, good, "fails"),
        (poor, broken_good, "not shown"),
        (broken_poor, good, "fails"),
    ):
        found = questions.reward(case(first, second))
        assert (found.verdict, found.parts[0].estimate.n) == (verdict, 6)
    assert "safe broke off in seed 5" in questions.reward(case(broken_good, poor)).why


# Claim 2: crashes


def crashed_arms(first, second, kind="degenerate"):
    arms = ([summary(seed, [kind] * hit) for seed, hit in enumerate(hits)] for hits in (first, second))
    return case(*arms)


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ([0] * 6, [1] * 6, "holds"),
        ([0] * 5, [1] * 5, "not shown"),
        ([1] * 6, [0] * 6, "fails"),
        ([1] * 6, [1] * 6, "not shown"),
        ([0] * 6, [0] * 6, "not shown"),
        ([0] * 6 + [1], [1] * 6 + [0], "not shown"),  # 8/128 one-sided
    ],
)
def test_fewer_crashed_runs(first, second, verdict):
    found = questions.crashes(crashed_arms(first, second))
    assert found.verdict == verdict
    assert questions.crashes(crashed_arms(second, first)).verdict == MIRROR[verdict]
    estimate = found.parts[0].estimate
    assert math.isnan(estimate.low) and estimate.value == pytest.approx((sum(first) - sum(second)) / len(first))


def test_what_nobody_watched_is_no_health():
    judge = (Blind("judge_crash", ("no judge_sigma0",), wholly=True),)
    unlike = crashed_arms([0] * 6, [1] * 6)
    unlike = replace(unlike, first=(replace(unlike.first[0], blind=judge), *unlike.first[1:]))
    found = questions.crashes(unlike)
    assert (found.verdict, found.why) == ("not shown", "the runs were not all watched for the same kinds of crash")
    alike = crashed_arms([0] * 6, [1] * 6)
    first, second = (tuple(replace(one, blind=judge) for one in arm) for arm in (alike.first, alike.second))
    assert questions.crashes(replace(alike, first=first, second=second)).verdict == "holds"

    long = long_case()
    blind = replace(long, first=(replace(long.first[0], blind=judge), *long.first[1:]))
    assert questions.long_run(blind).verdict == "not shown"
    assert "nobody watched judge_crash" in questions.long_run(blind).why


def test_the_side_and_the_severities_are_said():
    found = questions.crashes(crashed_arms([0] * 6, [1] * 6, "reward_crash"))
    assert "of 6 pairs, ppo alone in 6, safe alone in 0; exact one-sided p 0.016 for fewer, 1.000 for more" in found.why
    assert "0.5× / 1× / 2× thresholds: safe 0 / 0 / 0, ppo 6 / 6 / 6" in found.why
    assert "with a reward crash: 0 of 6 against 6 of 6" in found.why
    assert found.parts[0].estimate.p == 1 / 64


# Claim 3: KL


def kl_case(maximum=-0.1, spikes=1, judge=0.0):
    first = [summary(s, kl_max=0.5 + maximum, judge_final=0.4 + judge * JUDGE_SIGMA0) for s in SIX]
    return case(first, [summary(s, ["kl_spike"] * spikes) for s in SIX])


@pytest.mark.parametrize(
    ("given_", "verdict", "found_sides"),
    [
        ({}, "holds", [1, 1, 1]),
        ({"judge": -0.099}, "holds", [1, 1, 1]),  # within the margin
        ({"judge": -0.101}, "fails", [1, 1, -1]),
        ({"maximum": 0.1}, "fails", [-1, 1, 1]),
        ({"spikes": 0}, "not shown", [1, 0, 1]),
        ({"maximum": 0.0}, "not shown", [0, 1, 1]),
    ],
)
def test_kl_control_takes_all_three(given_, verdict, found_sides):
    found = questions.kl(kl_case(**given_))
    assert (found.verdict, sides(found)) == (verdict, found_sides)
    assert [part.unit for part in found.parts] == ["nats/token", "episodes", "judge's σ₀"]


def test_more_spikes_fail():
    swapped = questions.kl(case([summary(s, ["kl_spike"], kl_max=0.4) for s in SIX], [summary(s) for s in SIX]))
    assert (swapped.verdict, sides(swapped)) == ("fails", [1, -1, 1])


# Claim 4: cost


def cost_case(time, memory, seeds=6):
    first = [summary(s, time_update=0.5 * time * (1 + 1e-4 * s), memory_peak=900 * memory) for s in range(seeds)]
    return case(first, [summary(s) for s in range(seeds)])


@pytest.mark.parametrize(
    ("time", "memory", "seeds", "verdict", "found_sides"),
    [
        (1.005, 1.0, 6, "holds", [1, 1]),
        (0.5, 0.5, 6, "holds", [1, 1]),
        (1.02, 1.0, 6, "fails", [-1, 1]),
        (1.0, 1.02, 6, "fails", [1, -1]),
        (1.02, 1.02, 5, "not shown", [0, 0]),
        (1.01, 1.01, 6, "not shown", [0, 0]),  # on the bound: one pair's time, every pair's memory
    ],
)
def test_overhead_is_within_one_per_cent(time, memory, seeds, verdict, found_sides):
    found = questions.cost(cost_case(time, memory, seeds))
    assert (found.verdict, sides(found)) == (verdict, found_sides)


def test_ratios_are_geometric_and_turn_round():
    up = by_figure("memory_peak", [1800.0, 450.0, 900.0], [900.0] * 3)
    down = Case("a", "b", up.second, up.first)
    first, second = (questions.cost(one).parts[1].estimate for one in (up, down))
    assert first.value == pytest.approx(1.0) and first.low * second.high == pytest.approx(1.0)
    # log 2, -log 2, 0: standard error log 2 / sqrt 3, t(0.975, 2) = 4.302653
    assert first.high == pytest.approx(2.0 ** (4.302653 / math.sqrt(3)), rel=1e-6)


@settings(max_examples=30)
@given(st.lists(st.sampled_from([0.4, 0.49, 0.5, 0.51, 0.6]), min_size=1, max_size=8))
def test_an_overhead_that_fails_is_none_for_the_other_arm(times):
    one = by_figure("time_update", times, [0.5] * len(times))
    if questions.cost(one).parts[0].side < 0:
        assert questions.cost(Case("b", "a", one.second, one.first)).parts[0].side > 0


def test_costs_on_unlike_machines_do_not_compare():
    one = cost_case(1.5, 1.5)
    elsewhere = replace(one.first[0].run, manifest={**one.first[0].run.manifest, "hardware": {"cpu": "other"}})
    found = questions.cost(Case("safe", "ppo", (replace(one.first[0], run=elsewhere), *one.first[1:]), one.second))
    assert found.verdict == "not shown" and "different hardware" in found.why and len(found.parts) == 2


# Claims 5 and 6: ablations


@pytest.fixture(scope="module")
def safe_run(tmp_path_factory):
    return summarise(folder(tmp_path_factory.mktemp("safe"), "safe", 0))


@pytest.fixture(scope="module")
def inert_run(tmp_path_factory):
    return summarise(folder(tmp_path_factory.mktemp("inert"), "safe", 0, steps=100, changes=flat()))


def flat(until=100):
    """No gradient of the penalty, which is there at every odd step and looked at in ten of them, up to ``until``."""
    return {"grad/penalty": lambda step, cell: None if cell is None else 0.0 if step <= until else 0.01}


def hit(summaries, kind="degenerate"):
    return [replace(one, events=summary(0, [kind]).events) for one in summaries]


def test_the_mean_penalty_is_the_columns_mean(safe_run):
    assert questions.mean_penalty(safe_run) == pytest.approx(0.0012)  # 0.0024 at every other step
    assert math.isnan(
        questions.mean_penalty(replace(safe_run, run=replace(safe_run.run, folder=safe_run.run.folder / "x")))
    )


def test_the_gate_holds_where_more_collapse_without_it(safe_run):
    with_gate, without = repeated(safe_run), hit(repeated(safe_run))
    assert questions.gate(case(with_gate, without)).verdict == "holds"
    assert "mean penalty 1.00 times that without" in questions.gate(case(with_gate, without)).why
    assert questions.gate(case(without, with_gate)).verdict == "fails"
    assert questions.gate(case(with_gate, with_gate)).verdict == "not shown"
    assert questions.gate(case(with_gate[:5], without[:5])).verdict == "not shown"
    assert questions.gate(case(with_gate, hit(without, "kl_spike"))).verdict == "not shown"  # a crash, no collapse


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.2, "holds"), (1.3, "not shown"), (0.81, "holds"), (0.79, "not shown")]
)
def test_the_gate_is_asked_at_the_same_mean_penalty(safe_run, tmp_path, factor, verdict):
    more = {"loss/penalty": lambda step, cell: None if cell is None else cell / factor}
    other = summarise(folder(tmp_path, "safe-no-gate", 0, changes=more))
    found = questions.gate(case(repeated(safe_run), hit(repeated(other))))
    assert found.verdict == verdict and f"mean penalty {factor:.2f} times that without" in found.why
    if verdict == "not shown":
        assert f"multiply the ablation's coefficient by {factor:.2g}" in found.why and sides(found) == [0]


def test_an_inert_penalty_fails_both_without_an_ablation(safe_run, inert_run):
    for measure in (questions.gate, questions.pid):
        found = measure(case(repeated(inert_run, 1)))
        assert (found.verdict, found.certain) == ("fails", True) and "1 of 1 runs" in found.why
        assert measure(case([inert_run, *repeated(safe_run)[1:]])).verdict == "not shown"


@pytest.mark.parametrize(
    ("steps", "until", "verdict"),
    # Looked at in steps 1, 11, 21, ... while there is a penalty: ten times in a hundred steps, and nine tell nothing.
    [(100, 100, "fails"), (90, 90, "not shown"), (110, 100, "not shown"), (110, 110, "fails")],
)
def test_the_penalty_is_inert_by_the_one_rule_and_throughout(tmp_path, steps, until, verdict):
    run = folder(tmp_path, "safe", 0, steps=steps, changes=flat(until))
    assert bool(inert_in(run)) == (steps >= 100)
    for measure in (questions.gate, questions.pid):
        assert measure(case([summarise(run)])).verdict == verdict


def test_a_penalty_of_zero_is_not_inert(tmp_path):
    zero = {key: (lambda step, cell: None if cell is None else 0.0) for key in ("loss/penalty", "grad/penalty")}
    run = folder(tmp_path, "safe", 0, steps=100, changes=zero)
    assert not never_acted(run, "penalty") and questions.pid(case([summarise(run)])).verdict == "not shown"


@pytest.mark.parametrize(
    ("changed", "seeds", "verdict"),
    [
        ({"judge_final": 0.3}, 7, "holds"),
        ({"judge_final": 0.3}, 6, "not shown"),  # a third of 5 % takes seven pairs
        ({"judge_final": 0.5}, 7, "fails"),
        ({"judge_matched": 0.3}, 7, "holds"),
        ({"judge_matched": 0.3, "judge_final": 0.5}, 7, "not shown"),
        ({}, 7, "not shown"),
    ],
)
def test_the_pid_serves_where_something_is_worse_without_it(safe_run, changed, seeds, verdict):
    own = [replace(one, values=summary(0).values) for one in repeated(safe_run, seeds)]
    other = [replace(one, values={**one.values, **changed}) for one in own]
    assert questions.pid(case(own, other)).verdict == verdict
    assert questions.pid(case(other, own)).verdict == MIRROR[verdict]


def test_crashes_count_among_what_gets_worse(safe_run):
    found = questions.pid(case(repeated(safe_run, 7), hit(repeated(safe_run, 7), "degenerate")))
    assert (found.verdict, sides(found)) == ("holds", [0, 1, 0])
    alarmed = questions.pid(case(repeated(safe_run, 7), hit(repeated(safe_run, 7), "kl_spike")))
    assert sides(alarmed) == [0, 0, 0]


def test_an_ablation_must_leave_out_that_part_alone(safe_run):
    claim = CLAIMS[4]
    without = with_settings(safe_run.run, {"penalty.gate": False, "penalty.coefficient": 0.2})
    assert questions.unlike(claim, case([safe_run], [replace(safe_run, run=without)])) == ""
    other = with_settings(without, {"update.learning_rate": 1.0})
    assert questions.unlike(claim, case([safe_run], [replace(safe_run, run=other)])) == "update.learning_rate"


# Claim 7: speed


@pytest.fixture(scope="module")
def curves(tmp_path_factory):
    shapes = {"early": jump(1), "late": jump(11), "low": jump(1, 2.0), "flat": steady(1.0), "ramp": ramp(4.0, 30)}
    root = tmp_path_factory.mktemp("speed")
    return {name: summarise(folder(root, name, 0, reward=shape)) for name, shape in shapes.items()}


def test_steps_to_the_goal_by_hand(curves):
    # After a jump of h at step a the average is h (1 - q^(t - a)), q = 19/21. Of the early one the peak is at
    # t = 40: 80 % of 1 - q^39 is 0.784, and 1 - q^(t - 1) passes it at t - 1 = 15.3.
    q = 19 / 21
    goal = questions.goal(curves["early"])
    assert goal == pytest.approx(0.8 * 4.0 * (1 - q**39))
    assert questions.steps_to(curves["early"], goal) == 17 and questions.steps_to(curves["late"], goal) == 27
    assert questions.steps_to(curves["low"], goal) == math.inf
    level, ramped = 0.0, []
    for step in range(1, 41):
        reward = 4.0 * min(1.0, (step - 1) / 29)
        level = reward if step == 1 else q * level + (1 - q) * reward
        ramped.append(level)
    goal = 0.8 * max(ramped)
    assert questions.goal(curves["ramp"]) == pytest.approx(goal)
    assert questions.steps_to(curves["ramp"], goal - 1e-9) == 1 + next(
        i for i, value in enumerate(ramped) if value >= goal - 1e-9
    )


def test_speed_does_not_depend_on_where_the_reward_has_its_zero(curves, tmp_path):
    moved = summarise(folder(tmp_path, "safe", 0, reward=lambda step: jump(1)(step) - 6.0))
    assert questions.goal(moved) == pytest.approx(questions.goal(curves["early"]) - 6.0)
    assert questions.steps_to(moved, questions.goal(moved)) == 17


def test_not_slower_holds_and_fails(curves):
    early, late = repeated(curves["early"]), repeated(curves["late"])
    fast, slow = questions.speed(case(early, late)), questions.speed(case(late, early))
    assert (fast.verdict, slow.verdict) == ("holds", "fails")
    assert (fast.parts[0].estimate.value, slow.parts[0].estimate.value) == (-10.0, 10.0)
    assert questions.speed(case(early, early)).verdict == "not shown"
    assert questions.speed(case(late[:5], early[:5])).verdict == "not shown"


def test_a_run_that_never_gets_there_is_censored(curves):
    early, low, late = (repeated(curves[name]) for name in ("early", "low", "late"))
    none = questions.speed(case(low, early))
    assert none.verdict == "fails" and none.parts[0].estimate.value == math.inf
    assert math.isnan(none.parts[0].estimate.low) and "never got there in 6 of 6" in none.why
    mixed = questions.speed(case([*early[:5], low[5]], late))  # five earlier by ten steps, one never
    assert (mixed.verdict, mixed.parts[0].estimate.value) == ("not shown", -10.0)
    assert "never got there in 1 of 6 runs, and was earlier in 5" in mixed.why


def test_a_run_that_broke_off_before_the_goal_never_gets_there(curves, tmp_path):
    short = summarise(folder(tmp_path, "safe", 0, reward=jump(1), recorded=10, state="unstable"))
    found = questions.speed(case(repeated(short), repeated(curves["late"])))
    assert found.verdict == "fails" and found.parts[0].means == (math.inf, 26.0)


def test_an_opponent_that_learned_nothing_sets_no_goal(curves):
    found = questions.speed(
        case(repeated(curves["early"]), [*repeated(curves["early"])[:5], *repeated(curves["flat"])[5:]])
    )
    assert found.verdict == "not shown" and "less than 0.5 σ₀ in seed 5" in found.why
    assert questions.speed(case(repeated(curves["flat"]), repeated(curves["early"]))).verdict == "fails"


# Claim 8: long runs


SHORT = config.resolve("safe").update.steps


def long_case(seeds=6, crashed=(), steps=SHORT, **changed):
    settings = config.resolve("safe").model_dump(mode="json")
    short = [replace(summary(s), run=replace(summary(s).run, settings=settings)) for s in range(seeds)]
    plan = with_settings(short[0].run, {"update.steps": 4 * steps, **changed}).settings
    long = [summary(s, crashed if s == 2 else ()) for s in range(seeds)]
    long = [replace(one, run=replace(one.run, settings=plan)) for one in long]
    return Case("safe@long", "safe", tuple(long), tuple(short), {"ppo": hit(long)})


def test_long_runs_stay_whole():
    found = questions.long_run(long_case())
    assert found.verdict == "holds" and found.parts[0].estimate.high == pytest.approx(1 - 0.025 ** (1 / 6))
    assert "at this length ppo: 6 of 6 runs crashed" in found.why
    assert questions.long_run(long_case(seeds=5)).verdict == "not shown"
    for seeds in (3, 6):  # a counterexample needs no statistics
        found = questions.long_run(long_case(seeds, ["degenerate", "kl_runaway"]))
        assert (found.verdict, found.certain) == ("fails", True) and "(seed 2: degenerate)" in found.why
    assert questions.long_run(long_case(6, ["kl_runaway"])).verdict == "holds"  # an alarm is no crash
    assert questions.long_run(case([])).verdict == "not shown"


def test_a_long_run_is_the_same_run_but_longer():
    short = questions.long_run(long_case(steps=SHORT - 1, crashed=["numeric"]))
    assert short.verdict == "not shown" and f"{4 * SHORT - 4} steps are not 4 times {SHORT}" in short.why
    other = questions.long_run(long_case(**{"penalty.coefficient": 2.0}))
    assert other.verdict == "not shown" and "penalty.coefficient" in other.why
    assert questions.long_run(long_case(**{"evaluation.every": 120, "recording.samples": 1})).verdict == "holds"


# Claim 9: the log


def test_the_log_explains_each_penalty(safe_run):
    assert questions.explained(safe_run.run) == questions.Explained(0, 40, (), ())
    found = questions.interpretable(case([safe_run]))
    assert (found.verdict, found.why) == ("holds", "at all 40 steps of 1 runs")
    assert len(questions.CONTROLLER) == 10


@pytest.mark.parametrize("key", questions.CONTROLLER)
def test_an_empty_cell_of_any_controller_column_is_a_gap(tmp_path, key):
    run = folder(tmp_path, "safe", 3, changes={key: lambda step, cell: None if step == 7 else cell})
    assert questions.explained(run).gaps == (7,)
    found = questions.interpretable(case([summarise(run)]))
    assert (found.verdict, found.why) == ("fails", "seed 3: an empty cell in 1 steps, first 7")


def test_a_penalty_must_be_that_of_the_log_to_a_float32s_rounding(tmp_path):
    def off(by):
        return {"loss/penalty": lambda step, cell: cell * (1 + by) if step == 7 else cell}

    unit = float(np.finfo(np.float32).eps)
    assert questions.explained(folder(tmp_path, "within", 0, changes=off(unit / 2))).whole
    assert questions.explained(folder(tmp_path, "beyond", 0, changes=off(2 * unit))).unexplained == (7,)
    assert questions.explained(
        folder(tmp_path, "none", 0, changes={"loss/penalty": lambda step, cell: None})
    ).unexplained == tuple(range(1, 41))
    assert questions.explained(
        folder(tmp_path, "nan", 0, changes={"controller/gate": lambda s, c: math.nan if s == 2 else c})
    ).gaps == (2,)
    tiny = {"loss/penalty": lambda s, c: 1e-30 if s == 8 else c}
    zero = questions.explained(folder(tmp_path, "zero", 0, changes=tiny))
    assert zero.unexplained == (8,)  # below the threshold the penalty is zero


def test_coefficient_and_asymmetry_are_the_settings(safe_run):
    doubled = with_settings(safe_run.run, {"penalty.coefficient": 0.2})
    assert questions.explained(doubled).unexplained == tuple(range(1, 41, 2))
    two_sided = with_settings(safe_run.run, {"penalty.asymmetric": False})
    assert questions.explained(two_sided).unexplained == tuple(range(2, 41, 2))


def test_an_arm_without_a_penalty_has_no_log_to_read():
    found = questions.interpretable(case([summary(0)]))
    assert (found.verdict, found.why) == ("not shown", "safe has no penalty")
    assert questions.interpretable(case([])).verdict == "not shown"


def test_the_table_of_claims():
    assert [claim.number for claim in CLAIMS] == list(range(1, 11))
    assert [claim.paper for claim in CLAIMS] == ["+5.15 % (0.725 against 0.689)", *["none obtained"] * 9]
    assert "ppo-matched" in MATCHED_TO["safe"] and "ppo-official" in MATCHED_TO["safe-official"]
    assert all("holds" in claim.meaning and "fails" in claim.meaning for claim in CLAIMS)
