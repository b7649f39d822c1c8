"""The arms' terms by hand, and their controller's state."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from safebench.algorithms.base import ForwardOutput, Measurement, MiniBatch
from safebench.algorithms.ppo import PPO
from safebench.algorithms.safe import SAFE
from safebench.errors import UsageError
from safebench.training.distributed import Processes
from safebench.training.loop import Loop
from tests.support.learner import SAFE_LIKE
from tests.support.tiny import share_of_a, tiny_policy, tiny_settings, tiny_world

MASK = torch.tensor([[True, True, False], [True, False, False]])
POSITIONS = torch.tensor([[True, True, True], [True, True, False]])


def doubles(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def past(heads: int = 1, tokens: float = 3.0, positions: float = 5.0) -> MiniBatch:
    """Two replies of two and one tokens; what the masks leave out is garbage on purpose."""
    return MiniBatch(
        mask=MASK,
        log_probs=doubles([[-1.0, -2.0, 9.0], [-3.0, 9.0, 9.0]]),
        reference_log_probs=doubles([[-1.5, -2.0, 9.0], [-2.0, 9.0, 9.0]]),
        advantages=doubles([[1.0, -1.0, 99.0], [2.0, 99.0, 99.0]]),
        returns=doubles([[1.0, 0.0, 0.5], [0.0, 1.0, 99.0]]),
        heads=torch.zeros(2, 3, heads, dtype=torch.float64),
        positions=POSITIONS,
        token_count=tokens,
        position_count=positions,
        place_count=6.0,
    )


def present(heads: int = 1, **extra: Tensor | None) -> ForwardOutput:
    # Ratios: 1.5 (gain cut to 1.2), 1, and 0.5.
    logs = doubles([[-1.0, -2.0, 1.0], [-3.0, 1.0, 1.0]]) + doubles([[1.5, 1.0, 1.0], [0.5, 1.0, 1.0]]).log()
    values = doubles([[0.1, 0.1, 0.1], [0.1, 0.5, 77.0]])[..., None].expand(2, 3, heads)
    return ForwardOutput(logs, extra.get("entropy"), extra.get("kl"), values)


def test_ppos_terms_by_hand() -> None:
    terms = PPO(tiny_settings(loss={"value_coefficient": 0.1})).loss(past(), present()).terms
    # Policy: -(1.2 * 1 + 1 * -1 + 0.5 * 2) / 3 tokens.
    assert list(terms) == ["policy", "value"]
    assert float(terms["policy"]) == pytest.approx(-1.2 / 3, rel=1e-14)
    # Value, halved squares over 5 positions: 0.9, 0.1, 0.4, 0.1 within the clip; 0.5 cut to 0.2: max(0.5, 0.8).
    expected = 0.1 * (0.81 + 0.01 + 0.16 + 0.01 + 0.64) / 2 / 5
    assert float(terms["value"]) == pytest.approx(expected, rel=1e-14)


def test_what_describes_the_update_by_hand() -> None:
    """Ratios 1.5, 1 and 0.5 with gains 1, -1 and 2: the first is cut; of the five values one is."""
    found = PPO(tiny_settings()).loss(past(), present())
    assert (set(found.per_token), set(found.per_value)) == (set(PPO.token_columns), set(PPO.value_columns))
    assert found.per_token["update/clip_fraction"] == 1.0
    assert found.per_token["update/ratio_mean"] == pytest.approx(3.0, rel=1e-14)
    assert found.per_token["update/approx_kl"] == pytest.approx((math.log(1.5) ** 2 + math.log(2) ** 2) / 2, rel=1e-14)
    assert found.per_value["update/value_clip_fraction"] == 1.0


def test_terms_of_parts_add_up() -> None:
    """The counts are the whole mini-batch's: a micro-batch or a process contributes its share."""
    arm = PPO(tiny_settings())
    whole = arm.loss(past(), present()).terms
    part = arm.loss(past(tokens=6.0, positions=10.0), present()).terms
    for name in arm.names:
        assert float(part[name]) == pytest.approx(float(whole[name]) / 2, rel=1e-14)


def test_safes_terms_by_hand() -> None:
    arm = SAFE(tiny_settings("safe", **SAFE_LIKE))
    assert arm.names == ("policy", "value", "entropy", "penalty")
    # First batch: KL_short 0.8; tau = 0.3 * 1.5 in warmup; gate 2 / (1.9 + 0.1) = 1.
    arm.control(Measurement(0.8, 1.9, 0.0))
    kl = doubles([[0.3, 0.6, 50.0], [0.9, 50.0, 50.0]]).requires_grad_()
    entropy = doubles([[1.0, 2.0, 50.0], [3.0, 50.0, 50.0]])
    terms = arm.loss(past(heads=2), present(heads=2, kl=kl, entropy=entropy)).terms
    assert float(terms["policy"]) == pytest.approx(-1.2 / 3, rel=1e-14)
    # Entropy: -0.01 times the mean of 1, 2, 3.
    assert float(terms["entropy"]) == pytest.approx(-0.02, rel=1e-14)
    # Value, Huber 0.5: 0.9 -> 0.5 * 0.65; 0.1 and 0.4 as squares; the last 0.5 unclipped, 0.8 clipped, their mean.
    errors = [0.325, 0.005, 0.08, 0.005, (0.125 + 0.275) / 2]
    assert float(terms["value"]) == pytest.approx(0.5 * sum(errors) / 5, rel=1e-14)
    # Penalty: 0.1 * 0.35^2; slope 2 * 0.1 * 0.35, spread over the three tokens.
    assert float(terms["penalty"].detach()) == pytest.approx(0.01225, rel=1e-14)
    terms["penalty"].backward()
    assert kl.grad is not None
    torch.testing.assert_close(kl.grad, MASK * doubles([0.07 / 3]), rtol=1e-14, atol=0)


def test_the_penaltys_value_is_split_by_tokens() -> None:
    """Micro-batches of two tokens and one: the shares of the value add up to it."""
    arm = SAFE(tiny_settings("safe"))
    arm.control(Measurement(0.8, 1.9, 0.0))
    kl = doubles([[0.3, 0.6, 0.0], [0.9, 0.0, 0.0]])
    shares = []
    for row in (slice(0, 1), slice(1, 2)):
        then = past(heads=1)
        piece = MiniBatch(*(x[row] if isinstance(x, Tensor) else x for x in vars(then).values()))
        now = present(kl=kl)
        found = arm.loss(piece, ForwardOutput(now.log_probs[row], None, kl[row], now.heads[row]))
        shares.append(found.terms["penalty"])
    assert [float(share) for share in shares] == pytest.approx([0.01225 * 2 / 3, 0.01225 / 3], rel=1e-14)


def test_the_entropy_term_comes_with_its_coefficient() -> None:
    plain = PPO(tiny_settings())
    assert (plain.names, plain.needs_entropy, plain.needs_kl) == (("policy", "value"), False, False)
    with_bonus = PPO(tiny_settings(loss={"entropy_coefficient": 0.01}))
    assert (with_bonus.names, with_bonus.needs_entropy) == (("policy", "value", "entropy"), True)
    assert PPO(tiny_settings()).names == ("policy", "value")


def test_control_reports_what_it_set() -> None:
    arm = SAFE(tiny_settings("safe"))
    columns = arm.control(Measurement(0.8, 1.9, 0.5))
    signal = arm.signal
    assert signal is not None
    assert columns == {
        "controller/kl_short": 0.8,
        "controller/kl_long": 0.8,
        "controller/threshold": signal.threshold,
        "controller/velocity": 0.0,
        "controller/pid_p": 0.0,
        "controller/pid_i": 0.0,
        "controller/pid_d": 0.0,
        "controller/phase": "warmup",
        "controller/phase_factor": 1.5,
        "controller/gate": 1.0,
    }
    assert PPO(tiny_settings()).control(Measurement(0.8, 1.9, 0.5)) == {}


def test_a_restored_arm_goes_on_as_if_nothing_had_happened() -> None:
    first, second = SAFE(tiny_settings("safe")), SAFE(tiny_settings("safe"))
    for i in range(60):
        first.control(Measurement(0.1 * (i % 7), 2.0, i / 10))
    second.restore(json.loads(json.dumps(first.dump())))
    for i in range(60):
        measurement = Measurement(0.2, 1.0, -i / 10)
        assert first.control(measurement) == second.control(measurement)
    assert first.state == second.state


def test_an_arm_and_its_penalty_belong_together() -> None:
    with pytest.raises(UsageError, match="no KL penalty"):
        PPO(tiny_settings("ppo", penalty={}))
    with pytest.raises(UsageError, match="needs its controller"):
        SAFE(tiny_settings("ppo"))


def test_an_algorithm_of_ones_own_does_not_ignore_a_penalty() -> None:
    class Mine(PPO):
        pass

    with pytest.raises(UsageError, match="has no KL penalty"):
        Mine(tiny_settings("safe"))


def test_a_checkpoint_with_the_controllers_former_key_is_read() -> None:
    settings = tiny_settings("safe")
    worlds = (tiny_world(tiny_policy(moved=0.3), share_of_a) for _ in range(2))
    one, two = (Loop(settings, world, Processes(settings.compute)) for world in worlds)
    one.step()
    state = one.state()
    state["arm"] = state.pop("algorithm")
    two.restore(state)
    assert two.algorithm.dump() == one.algorithm.dump() != SAFE(settings).dump()
