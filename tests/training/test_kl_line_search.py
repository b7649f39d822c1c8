"""Steps under a ceiling of KL (equation 13): the search for any curve, and the guarantee on a real policy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from safebench import config
from safebench.algorithms.base import Experience
from safebench.models.policy import Policy
from safebench.training.distributed import Processes
from safebench.training.kl_line_search import KLLineSearch, Plain, StepResult, backtrack
from safebench.training.loop import Loop
from safebench.training.measure import measure
from tests.support.learner import SAFE_LIKE, Learner, make
from tests.support.tiny import tiny_policy, tiny_settings, tiny_world

# The search, for any curve of KL over the share of the step

anything = st.floats(allow_nan=True, allow_infinity=True)
kls = st.one_of(st.floats(0, 20), anything)
ceilings = st.floats(1e-3, 5)


class Curve:
    """A KL for every share, made up as it is asked for: no shape is promised."""

    def __init__(self, values: list[float]) -> None:
        self.values, self.asked = iter(values), list[tuple[float, float]]()

    def __call__(self, scale: float) -> float:
        kl = next(self.values)
        self.asked.append((scale, kl))
        return kl


@given(st.lists(kls, min_size=9, max_size=9), kls, ceilings)
@example([math.nan] * 9, 0.1, 0.5)
@example([math.inf] * 9, 0.1, 0.5)
@example([0.6] * 9, math.nan, 0.5)
@example([0.6] * 9, math.inf, 0.5)
@example([0.8] * 9, 0.9, 0.5)
def test_what_is_kept_was_measured_and_is_below_the_limit_or_nothing_is_kept(
    values: list[float], before: float, ceiling: float
) -> None:
    curve = Curve(values)
    taken = backtrack(curve, before, ceiling, trials=8)
    assert taken.passes == len(curve.asked) <= 9
    assert curve.asked[0][0] == 1.0
    scales = [scale for scale, _ in curve.asked]
    assert all(late < early for early, late in itertools.pairwise(scales))
    limit = max(ceiling, before if math.isfinite(before) else 0.0)
    assert not any(kl <= limit for _, kl in curve.asked[:-1])  # it goes no further than it must
    if taken.scale > 0:
        assert (taken.scale, taken.kl) == curve.asked[-1]
        assert taken.kl <= limit
    else:
        assert taken.passes == 9
        assert taken.kl is before


@given(st.floats(0, 1), st.floats(-20, 20), st.floats(-20, 20), ceilings)
def test_a_smooth_curve_stays_below_the_limit(before: float, linear: float, square: float, ceiling: float) -> None:
    def kl_at(scale: float) -> float:
        return abs(before + linear * scale + square * scale**2)

    taken = backtrack(kl_at, before, ceiling, trials=60)
    assert taken.kl == (kl_at(taken.scale) if taken.scale else before) <= max(ceiling, before)
    if before < 0.9 * ceiling:
        assert taken.scale > 0  # a short enough step is always allowed from below the ceiling


def test_the_published_share_is_tried_first_and_halved_after() -> None:
    # KL = 8 s^0.1 hardly falls: shares 1, 0.5 / 8, then halves of it.
    curve = Curve([8.0, 6.06, 5.66, 5.28])
    assert backtrack(curve, 0.1, 0.5, trials=3) == StepResult(0.0, 0.1, 4)
    assert [scale for scale, _ in curve.asked] == [1.0, 0.0625, 0.03125, 0.015625]
    # Where KL grows with the square, the published share is enough: 2 * 0.25^2 = 0.125.
    assert backtrack(lambda s: 2 * s**2, 0.0, 0.5, trials=8) == StepResult(0.25, 0.125, 2)
    # Without a number to guess by, half of the step.
    assert backtrack(Curve([math.inf, 0.4]), 0.0, 0.5, trials=8) == StepResult(0.5, 0.4, 2)
    assert backtrack(Curve([math.nan, math.nan, 0.4]), 0.0, 0.5, trials=8) == StepResult(0.25, 0.4, 3)


def test_on_the_limit_is_below_it() -> None:
    assert backtrack(Curve([0.5]), 0.1, 0.5, trials=8) == StepResult(1.0, 0.5, 1)
    assert backtrack(Curve([0.9]), 0.9, 0.5, trials=8) == StepResult(1.0, 0.9, 1)
    assert backtrack(Curve([math.nextafter(0.5, 1), 0.1]), 0.1, 0.5, trials=8).scale < 1.0
    # From above the ceiling a step may go down, or nowhere; up it may not.
    assert backtrack(Curve([0.8]), 0.9, 0.5, trials=8).scale == 1.0
    curve = Curve([1.0, 0.905])
    assert backtrack(curve, 0.9, 0.5, trials=1) == StepResult(0.0, 0.9, 2)
    assert curve.asked[1][0] == 0.5  # the published guess is of the ceiling, wherever the step began
    # Where the step began at no number the ceiling alone counts.
    assert backtrack(Curve([0.4]), math.nan, 0.5, trials=8).scale == 1.0


# The guarantee, on a policy


def mean_kl(policy: Policy, experience: Experience, microbatch: int | None, temperature: float = 1.0) -> float:
    """Measure anew, with the sampler's own function; equal groups of rows give equal bits."""
    rollout = experience.rollout
    kl = measure(policy, rollout, temperature, microbatch).kl
    return float(kl[rollout.mask].double().sum()) / int(rollout.mask.sum())


def kl_row_by_row(policy: Policy, experience: Experience) -> float:
    """Measure from the model's own logits, each row by itself and without padding."""
    rollout, total = experience.rollout, 0.0
    with torch.no_grad():
        for row in range(len(rollout.prompts)):
            ids = rollout.ids[row][rollout.attention[row].bool()][None]
            length = int(rollout.mask[row].sum())
            p = policy.model(input_ids=ids).logits[0, -length - 1 : -1].double().log_softmax(-1)
            with policy.as_reference():
                r = policy.model(input_ids=ids).logits[0, -length - 1 : -1].double().log_softmax(-1)
            total += float((p.exp() * (p - r)).sum())
    return total / int(rollout.mask.sum())


class Watch:
    """Stands around every step of a stepper and measures by itself what it starts from and reaches."""

    def __init__(self, loop: Loop) -> None:
        self.loop, self.steps = loop, list[tuple[float, float]]()
        self.alone: list[float] = []
        """Of every seventh step, how far the other measurement of what it reached is off."""
        self.inner = loop.updater.stepper
        loop.updater.stepper = self

    def begin(self, experience: Experience) -> None:
        self.experience = experience
        self.inner.begin(experience)
        self.kl = self.now()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        before = self.kl
        self.inner.step(optimizer)
        self.kl = self.now()
        self.steps.append((before, self.kl))
        if len(self.steps) % 7 == 0:
            self.alone.append(kl_row_by_row(self.loop.world.policy, self.experience) - self.kl)

    def now(self) -> float:
        return mean_kl(self.loop.world.policy, self.experience, self.loop.settings.update.microbatch)

    def columns(self) -> dict[str, float]:
        return self.inner.columns()


def watched(arm: str, steps: int, **update: Any) -> tuple[Watch, list[dict[str, Any]]]:
    shared = {"minibatches": 2, "microbatch": 3, "critic_learning_rate": 1e-2, "steps": steps, **update}
    settings = tiny_settings(arm, **(SAFE_LIKE if arm == "safe" else {}), update=shared)
    loop = Loop(settings, tiny_world(tiny_policy()), Processes(settings.compute))
    watch = Watch(loop)
    rows = [loop.step()[0] for _ in range(steps)]
    assert loop.broken is None
    return watch, rows


STRESS = [("safe", 0.01), ("safe", 0.1), ("safe", 1.0), ("ppo", 1.0)]
"""Learning rates times 1, 10 and 100."""


@pytest.mark.parametrize(("arm", "rate"), STRESS)
def test_no_step_leaves_the_ceiling(arm: str, rate: float) -> None:
    hold(arm, rate, 15)


@pytest.mark.slow
@pytest.mark.parametrize(("arm", "rate"), STRESS)
def test_no_step_of_a_long_run_leaves_the_ceiling(arm: str, rate: float) -> None:
    hold(arm, rate, 200)


def hold(arm: str, rate: float, steps: int) -> None:
    """Hold each of four optimizer steps per batch against two measurements of its own."""
    watch, rows = watched(arm, steps, learning_rate=rate, preview={"ceiling": 0.3})
    assert len(watch.steps) == 4 * steps
    for before, after in watch.steps:
        assert after <= max(0.3, before)
    assert max(map(abs, watch.alone)) < 1e-5  # nats: float32, other groups of rows
    for number, row in enumerate(rows):
        mine = watch.steps[4 * number : 4 * number + 4]
        assert row["preview/kl"] == mine[-1][1]
        assert row["preview/passes"] >= 4
        assert (row["preview/shrunk"] > 0) == (row["preview/scale"] < 1) == (row["preview/passes"] > 4)
    shrunk = sum(row["preview/shrunk"] for row in rows) / len(rows)
    assert shrunk > (0.5 if rate > 0.05 else 0.0)
    assert any(after != before for before, after in watch.steps[-20:])  # it still moves


def test_without_it_the_same_run_leaves_the_ceiling_far_behind() -> None:
    watch, _ = watched("safe", 5, learning_rate=0.1)
    assert isinstance(watch.inner, Plain)
    assert max(after for _, after in watch.steps) > 1.0


def weights(one: Learner) -> tuple[Tensor, Tensor]:
    return one.policy_weights(), one.critic_weights()


def previewed(arm: str = "safe", optimizer: Any = torch.optim.AdamW, policy: Any = None, **update: Any) -> Learner:
    return make(arm, optimizer=optimizer, policy=policy, update={"preview": {}, **update})


class Wild(torch.optim.SGD):
    """Sets every weight that it is to update to something that is no number."""

    value = math.nan

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups[:1]:
            for p in group["params"]:
                p.fill_(self.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_a_step_into_nothing_is_taken_back_bit_for_bit(value: float) -> None:
    one = previewed(optimizer=type("Wilder", (Wild,), {"value": value}), microbatch=3, epochs=1)
    experience = one.experience()
    before, start = one.policy_weights(), mean_kl(one.policy, experience, 3)
    tally = one.run(experience)
    assert torch.equal(one.policy_weights(), before)
    assert tally.preview == {"preview/kl": start, "preview/shrunk": 1.0, "preview/scale": 0.0, "preview/passes": 4.0}
    assert mean_kl(one.policy, experience, 3) == start


class Idle(torch.optim.SGD):
    """Changes nothing."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        pass


@pytest.mark.parametrize("microbatch", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_an_unmoved_policy_reaches_the_kl_it_was_measured_at_to_the_bit(
    microbatch: int | None, dtype: torch.dtype, temperature: float
) -> None:
    """So that the comparison with the KL before the step is exact, and costs no pass of its own."""
    one = make(
        "ppo",
        policy={"dtype": dtype, "moved": 0.6},
        optimizer=Idle,
        rollout={"temperature": temperature},
        update={"preview": {"ceiling": 1e-3}, "microbatch": microbatch, "minibatches": 2, "epochs": 2},
    )
    experience = one.experience()
    tally = one.run(experience)
    assert isinstance(one.updater.stepper, KLLineSearch)
    assert [taken.scale for taken in one.updater.stepper.taken] == [1.0] * 4
    assert tally.preview["preview/kl"] == mean_kl(one.policy, experience, microbatch, temperature)


def counted(policy: Policy) -> Iterator[list[int]]:
    """Count the rows of every forward pass of the policy."""
    seen: list[int] = []
    inner: Callable[[Tensor, Tensor], Tensor] = policy.hidden_states

    def hidden_states(ids: Tensor, mask: Tensor) -> Tensor:
        seen.append(len(ids))
        return inner(ids, mask)

    policy.hidden_states = hidden_states  # type: ignore[method-assign]
    yield seen


def test_it_costs_one_forward_pass_over_the_batch_per_step_unless_it_shortens() -> None:
    shape = {"epochs": 2, "minibatches": 4, "microbatch": 2, "learning_rate": 1e-3}
    passes = {}
    for preview in (None, {"ceiling": 100.0}):
        one = make("safe", optimizer=torch.optim.AdamW, update={"preview": preview, **shape})
        experience = one.experience()
        seen = next(counted(one.policy))
        tally = one.run(experience)
        passes[preview is None] = sum(seen)
    # 8 updates of 2 rows each; the preview looks at all 8 rows after each of them.
    assert passes == {True: 16, False: 16 + 8 * 8}
    assert tally.preview["preview/passes"] == 8
    assert (tally.preview["preview/shrunk"], tally.preview["preview/scale"]) == (0.0, 1.0)


def test_each_trial_costs_one_more() -> None:
    one = previewed(learning_rate=1.0, epochs=1)
    experience = one.experience()
    seen = next(counted(one.policy))
    tally = one.run(experience)
    assert tally.preview["preview/scale"] < 1
    assert tally.preview["preview/passes"] == sum(seen) / 8 - 1 >= 2


def test_a_ceiling_out_of_reach_changes_no_bit() -> None:
    runs = []
    for preview in (None, {"ceiling": 1e6}):
        one = make("safe", optimizer=torch.optim.AdamW, update={"preview": preview, "minibatches": 2})
        experience = one.experience()
        tally = one.run(experience)
        runs.append((*weights(one), torch.tensor(list(tally.means().values()))))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_shortened_step_leaves_adam_and_the_critic_as_the_whole_step_does() -> None:
    made = []
    for preview in (None, {}):
        update = {"preview": preview, "epochs": 1, "learning_rate": 0.2}
        one = make("safe", policy={"moved": 0.0}, optimizer=torch.optim.AdamW, update=update)
        before = one.policy_weights()
        tally = one.run(one.experience())
        state = one.updater.optimizer.state_dict()["state"]
        moments = torch.cat([x.flatten() for of in state.values() for x in of.values()])
        made.append((one.policy_weights() - before, one.critic_weights(), moments))
    whole, short = made
    assert torch.equal(whole[1], short[1])
    assert torch.equal(whole[2], short[2])
    scale = tally.preview["preview/scale"]
    assert 0 < scale < 1
    torch.testing.assert_close(short[0], scale * whole[0], rtol=0, atol=3e-7)  # weights of about 1 in float32


def test_what_trains_with_dropout_is_measured_without() -> None:
    """As it samples: dropout would put noise in the place of the KL."""
    one = make("ppo", optimizer=Idle, policy={"dropout": 0.5}, update={"preview": {"ceiling": 100.0}})
    experience = one.experience()
    start = mean_kl(one.policy, experience, None)
    with one.policy.training(), torch.random.fork_rng():
        assert mean_kl(one.policy, experience, None) != start
    assert one.run(experience).preview["preview/kl"] == start


def test_with_gradient_checkpointing_it_is_the_same() -> None:
    kls = []
    for checkpointing in (False, True):
        one = previewed(policy={"gradient_checkpointing": checkpointing}, learning_rate=1.0)
        kls.append(one.run(one.experience()).preview["preview/kl"])
    assert kls[0] == pytest.approx(kls[1], rel=1e-5)


def test_a_broken_update_has_no_preview() -> None:
    one = previewed("ppo")
    experience = one.experience()
    experience.advantages.fill_(math.nan)
    tally = one.run(experience)
    assert tally.broken is not None
    assert tally.preview == {}


def test_only_those_who_ask_for_it_have_it() -> None:
    for name, _ in config.experiments():
        assert (config.resolve(name).update.preview is not None) == (name == "safe-predictive"), name
    for arm in ("ppo", "safe"):
        watch, rows = watched(arm, 1)
        assert type(watch.inner) is Plain
        assert [rows[0][key] for key in rows[0] if key.startswith("preview/")] == [None] * 4
