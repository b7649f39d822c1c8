"""Sampling: the right distribution, the same tokens from the same noise, and masks that fit the replies."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from safebench.models.critic import reply_states
from safebench.models.generation import Rollout, _draw, encode, sample
from safebench.models.policy import Policy
from safebench.training.measure import measure
from tests.support.tiny import CPU, END, PAD, PROMPTS, STOPS, VOCABULARY, draws, encoded, tiny_policy, tiny_rollout


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy(dtype=torch.float64, moved=0.3)


@pytest.fixture(scope="module")
def rollout(policy: Policy) -> Rollout:
    return tiny_rollout(policy)


def alone(policy: Policy, rollout: Rollout, row: int) -> Tensor:
    """Return the model's own logits [L, V] before each reply token of a row, without any padding."""
    ids = rollout.ids[row][rollout.attention[row].bool()]
    length = int(rollout.mask[row].sum())
    with torch.no_grad():
        return policy.model(input_ids=ids[None]).logits[0, -length - 1 : -1]


# Drawing a token


def test_rows_drawn_a_few_at_a_time_are_those_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 501, generator=generator)
    uniform = torch.rand(7, dtype=torch.float64, generator=generator)
    whole = _draw(logits, uniform, 0.8)
    for probabilities in (1, 1200, 501 * 7):
        monkeypatch.setattr("safebench.models.generation.PROBABILITIES", probabilities)
        assert torch.equal(_draw(logits, uniform, 0.8), whole)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_draw_has_the_distribution_of_the_logits(temperature: float) -> None:
    """Of n numbers spread evenly over [0, 1), a token of probability p takes n p, give or take one."""
    n = 4096
    logits = torch.tensor([0.3, -2.0, 1.7, 0.0, -0.5], dtype=torch.float64)
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    counts = torch.bincount(_draw(logits.expand(n, 5), grid, temperature), minlength=5)
    expected = n * (logits / temperature).softmax(0)
    assert float((counts - expected).abs().max()) <= 1


def test_a_draw_by_hand() -> None:
    # Cumulative 1/4, 1/2, 1: a number on the border belongs to the next token.
    logits = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64).log().expand(6, 3)
    uniform = torch.tensor([0.0, 0.2, 0.3, 0.49, 0.51, 0.999], dtype=torch.float64)
    assert _draw(logits, uniform, 1.0).tolist() == [0, 0, 1, 1, 2, 2]


def test_what_has_no_probability_is_never_drawn() -> None:
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 0.0, -math.inf]).expand(3, 5)
    uniform = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert _draw(logits, uniform, 1.0).tolist() == [1, 3, 3]


@given(st.lists(st.floats(-30, 30), min_size=4, max_size=4), st.floats(0, 1, exclude_max=True))
def test_a_draw_is_the_inverse_of_the_cumulative_distribution(values: list[float], uniform: float) -> None:
    logits = torch.tensor([values], dtype=torch.float32)
    token = int(_draw(logits, torch.tensor([uniform], dtype=torch.float64), 1.0))
    cumulative = [0.0, *logits.softmax(-1).double().cumsum(-1)[0].tolist()]
    assert cumulative[token] <= uniform * cumulative[-1] < cumulative[token + 1]


# Sampling replies


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_each_token_is_what_the_whole_models_distribution_gives(policy: Policy, temperature: float) -> None:
    """Cache, padding and positions: row by row without any of them, the tokens are the same."""
    noise = draws(len(PROMPTS), 6, seed=4)
    rollout = sample(policy, encoded(policy), noise, temperature)
    for row in range(len(PROMPTS)):
        logits = alone(policy, rollout, row)
        expected = _draw(logits, noise[row, : len(logits)], temperature)
        assert torch.equal(rollout.tokens[row][rollout.mask[row]], expected)


def test_the_same_noise_gives_the_same_replies_and_other_noise_others(policy: Policy, rollout: Rollout) -> None:
    again = tiny_rollout(policy)
    assert torch.equal(again.ids, rollout.ids)
    assert again.replies == rollout.replies
    assert tiny_rollout(policy, seed=1).replies != rollout.replies


@pytest.mark.parametrize("chunk", [1, 3, 7, 8, 100])
def test_grouping_does_not_change_tokens(policy: Policy, rollout: Rollout, chunk: int) -> None:
    pieces = sample(policy, encoded(policy), draws(len(PROMPTS), 6), 1.0, chunk)
    assert torch.equal(pieces.ids, rollout.ids)
    assert torch.equal(pieces.mask, rollout.mask)
    assert pieces.replies == rollout.replies


@pytest.mark.parametrize("row", range(len(PROMPTS)))
def test_company_does_not_change_a_reply(policy: Policy, rollout: Rollout, row: int) -> None:
    """Alone, a prompt has no padding at all."""
    one = sample(policy, encoded(policy, [PROMPTS[row]]), draws(len(PROMPTS), 6)[row : row + 1], 1.0)
    assert one.attention[0, : -one.mask.shape[1]].all()
    assert one.replies == [rollout.replies[row]]
    assert one.tokens[one.mask].tolist() == rollout.tokens[row][rollout.mask[row]].tolist()


def test_sampling_leaves_no_trace(policy: Policy) -> None:
    state = torch.get_rng_state()
    rollout = tiny_rollout(policy)
    assert torch.equal(torch.get_rng_state(), state)
    assert not rollout.ids.requires_grad
    assert not policy.model.training


# What a rollout says about its replies


def test_the_rollout_has_replies_of_all_kinds(rollout: Rollout) -> None:
    """Otherwise the tests on it would prove little: short ones, full ones, ended and not."""
    lengths = rollout.mask.sum(-1)
    assert lengths.min() < 6
    assert lengths.max() == 6
    assert 0 < int(rollout.ended.sum()) < len(PROMPTS)


def test_masks_cover_the_reply_up_to_its_first_end_token(rollout: Rollout) -> None:
    for tokens, mask, ended in zip(rollout.tokens.tolist(), rollout.mask.tolist(), rollout.ended.tolist(), strict=True):
        length = sum(mask)
        assert mask == [True] * length + [False] * (len(mask) - length)
        assert [t in STOPS for t in tokens[:length]] == [False] * (length - 1) + [ended]
        assert ended or length == 6
        assert tokens[length:] == [PAD] * (len(mask) - length)


def test_attention_covers_prompt_and_reply_and_nothing_else(policy: Policy, rollout: Rollout) -> None:
    prompts = encoded(policy)
    width = prompts.ids.shape[1]
    assert torch.equal(rollout.ids[:, :width], prompts.ids)
    assert torch.equal(rollout.attention[:, :width], prompts.attention)
    assert torch.equal(rollout.attention[:, width:].bool(), rollout.mask)
    assert prompts.attention.sum(-1).tolist() == [len(p.split()) for p in PROMPTS]
    assert torch.equal(prompts.ids == PAD, prompts.attention == 0)


def test_texts_leave_the_end_token_out(policy: Policy, rollout: Rollout) -> None:
    for row, reply in enumerate(rollout.replies):
        kept = [int(t) for t in rollout.tokens[row][rollout.mask[row]] if int(t) not in STOPS]
        assert reply == "".join(f" {policy.tokenizer.decode([token])}" for token in kept)
        assert not set(reply) & set("0123456789<>")


def test_there_is_one_position_past_the_longest_reply_where_there_is_room(policy: Policy, rollout: Rollout) -> None:
    assert rollout.mask.shape[1] == 6
    short = [i for i, length in enumerate(rollout.mask.sum(-1).tolist()) if length < 5]
    noise = draws(len(PROMPTS), 6)[short]
    alone = sample(policy, encoded(policy, [PROMPTS[i] for i in short]), noise, 1.0)
    assert alone.mask.shape[1] == int(alone.mask.sum(-1).max()) + 1 <= 5


def test_a_reply_may_end_with_its_last_token(policy: Policy) -> None:
    """A full row whose last token is an end token has ended: cut the noise where a longer run ended."""
    whole = tiny_rollout(policy, tokens=30)
    lengths = whole.mask.sum(-1)
    row = int(torch.nonzero(whole.ended & (lengths > 1))[0])
    length, noise = int(lengths[row]), draws(len(PROMPTS), 30)[row : row + 1]
    for tokens, ended in ((length, True), (length - 1, False)):
        cut = sample(policy, encoded(policy, [PROMPTS[row]]), noise[:, :tokens], 1.0)
        assert cut.mask.tolist() == [[True] * tokens]
        assert cut.ended.tolist() == [ended]


def test_a_pad_token_that_is_the_end_token_stays_in_the_reply() -> None:
    """Masks come from lengths, not from ids (TRL drops the end token there)."""
    policy = tiny_policy(dtype=torch.float64, moved=0.3)
    before = tiny_rollout(policy, tokens=30)
    policy.tokenizer.pad_token = policy.tokenizer.eos_token
    same = sample(policy, encoded(policy), draws(len(PROMPTS), 30), 1.0)
    assert torch.equal(same.mask, before.mask)
    assert torch.equal(same.ended, before.ended)
    assert (same.tokens[~same.mask] == END).all()


def test_long_prompts_lose_their_beginning_and_are_counted() -> None:
    short = encode(["long", "short", "exact"], [[5, 6, 7, 8], [9], [2, 3, 4]], 3, PAD, CPU)
    assert short.ids.tolist() == [[6, 7, 8], [PAD, PAD, 9], [2, 3, 4]]
    assert short.attention.tolist() == [[1, 1, 1], [0, 0, 1], [1, 1, 1]]
    assert short.truncated == 1


# Measuring what was sampled


def test_measurements_are_those_of_the_unpadded_rows(policy: Policy, rollout: Rollout) -> None:
    measured = measure(policy, rollout, 1.0)
    for row in range(len(PROMPTS)):
        mask = rollout.mask[row]
        log_p = alone(policy, rollout, row).log_softmax(-1)
        with policy.as_reference():
            log_r = alone(policy, rollout, row).log_softmax(-1)
        tokens = rollout.tokens[row][mask][:, None]
        expected = {
            "log_probs": log_p.gather(-1, tokens).squeeze(-1),
            "reference_log_probs": log_r.gather(-1, tokens).squeeze(-1),
            "kl": (log_p.exp() * (log_p - log_r)).sum(-1),
            "entropy": -(log_p.exp() * log_p).sum(-1),
        }
        for name, value in expected.items():
            torch.testing.assert_close(getattr(measured, name)[row][mask], value, rtol=1e-10, atol=1e-12)
            assert not getattr(measured, name)[row][~mask].any()
    assert float(measured.kl[rollout.mask].min()) > 1e-3


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_grouping_does_not_change_measurements(policy: Policy, rollout: Rollout, chunk: int) -> None:
    whole, pieces = measure(policy, rollout, 0.8), measure(policy, rollout, 0.8, chunk)
    for name in ("log_probs", "reference_log_probs", "kl", "entropy"):
        torch.testing.assert_close(getattr(pieces, name), getattr(whole, name), rtol=1e-11, atol=1e-13)
    seen = rollout.mask
    for name in ("states", "reference_states"):
        torch.testing.assert_close(getattr(pieces, name)[seen], getattr(whole, name)[seen], rtol=1e-11, atol=1e-13)


def test_the_state_after_the_last_token_survives_grouping(policy: Policy, rollout: Rollout) -> None:
    """The value of the position past the end is trained: its state must be there whatever the grouping."""
    lengths = rollout.mask.sum(-1)
    whole, pieces = measure(policy, rollout, 1.0), measure(policy, rollout, 1.0, 1)
    rows = torch.nonzero(lengths < rollout.mask.shape[1]).flatten()
    assert len(rows) > 1
    after = lengths[rows]
    assert whole.states[rows, after].abs().sum(-1).min() > 0
    torch.testing.assert_close(pieces.states[rows, after], whole.states[rows, after], rtol=1e-11, atol=1e-13)


def test_an_unmoved_policy_is_its_reference_to_the_bit() -> None:
    policy = tiny_policy()
    measured = measure(policy, tiny_rollout(policy), 1.0)
    assert torch.equal(measured.log_probs, measured.reference_log_probs)
    assert not measured.kl.any()


def test_reply_states_are_the_states_before_each_token() -> None:
    hidden = torch.arange(10.0).reshape(1, 5, 2)
    assert torch.equal(reply_states(hidden, 2), hidden[:, 2:4])


@pytest.mark.parametrize("size", [None, 1, 3, 5, 8])
def test_groups_are_a_partition_with_like_lengths_together(rollout: Rollout, size: int | None) -> None:
    groups = rollout.groups(size)
    order = [row for group in groups for row in group]
    assert sorted(order) == list(range(len(PROMPTS)))
    lengths = rollout.attention.sum(-1)[order].tolist()
    assert lengths == sorted(lengths)
    assert all(len(group) == (size or len(PROMPTS)) for group in groups[:-1])


@pytest.mark.parametrize("rows", [[0], [2, 6], [5, 1, 3], list(range(len(PROMPTS)))])
def test_a_cut_takes_away_padding_only(rollout: Rollout, rows: list[int]) -> None:
    cut = rollout.cut(rows)
    assert cut.attention[:, 0].any()
    for i, row in enumerate(rows):
        real = rollout.attention[row].bool()
        assert torch.equal(cut.ids[i][cut.attention[i].bool()], rollout.ids[row][real])
        assert torch.equal(cut.tokens[i][cut.mask[i]], rollout.tokens[row][rollout.mask[row]])
    longest = int(cut.mask.sum(-1).max())
    assert cut.mask.shape[1] == min(longest + 1, rollout.mask.shape[1])


def test_the_vocabulary_is_the_logits() -> None:
    assert tiny_policy().vocabulary == VOCABULARY
