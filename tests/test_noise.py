"""Random draws depend on their arguments alone, and batches walk through shuffled passes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safebench.world import noise


def draw(purpose: str, *where: int) -> list[float]:
    return torch.rand(3, dtype=torch.float64, generator=noise.generator(purpose, *where)).tolist()


def test_a_generator_depends_on_its_arguments_and_on_nothing_else() -> None:
    first = draw("critic", 3)
    torch.manual_seed(5)
    torch.rand(7)
    assert draw("critic", 3) == first


def test_a_generator_leaves_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    draw("critic", 3)
    noise.uniforms("rollout", 0, 1, range(4), 5)
    noise.batch_indices(0, 3, 8, 10)
    assert torch.equal(torch.get_rng_state(), before)


def test_each_argument_counts_and_none_runs_into_the_next() -> None:
    # (1, 23) against (12, 3): the arguments are told apart even where their digits are the same.
    keys = [("a", 1, 23), ("a", 12, 3), ("a", 123), ("b", 1, 23), ("a1", 23), ("a", 1, 24), ("a", 1, 23, 0), ("a",)]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)


def test_draws_do_not_change_between_releases() -> None:
    """A golden from the day of writing: every recorded run depends on it."""
    assert draw("rollout", 0, 1, 0) == [0.05381323620354894, 0.5604193267897117, 0.21051593356216003]


def test_a_rows_noise_does_not_depend_on_its_neighbours() -> None:
    whole = noise.uniforms("rollout", 7, 2, range(6), 5)
    parts = [noise.uniforms("rollout", 7, 2, rows, 5) for rows in (range(0, 1), range(1, 4), range(4, 6))]
    assert torch.equal(torch.cat(parts), whole)
    assert len(set(whole.flatten().tolist())) == whole.numel()


def test_a_rows_noise_starts_alike_whatever_its_length() -> None:
    long, short = (noise.uniforms("rollout", 7, 2, range(3), tokens) for tokens in (9, 4))
    assert torch.equal(long[:, :4], short)


def test_noise_is_uniform() -> None:
    x = noise.uniforms("rollout", 0, 1, range(200), 50)
    assert x.dtype == torch.float64
    assert x.min() >= 0
    assert x.max() < 1
    # 10,000 draws: the mean's deviation is 0.289 / 100; five of them.
    assert abs(float(x.mean()) - 0.5) < 5 * 0.00289


@given(st.integers(0, 1000), st.integers(0, 50), st.integers(1, 40))
def test_an_order_is_a_permutation(seed: int, epoch: int, size: int) -> None:
    assert sorted(noise.order(seed, epoch, size)) == list(range(size))


@given(seed=st.integers(0, 1000), batch=st.integers(1, 12), size=st.integers(1, 30))
def test_every_pass_visits_every_prompt_once(seed: int, batch: int, size: int) -> None:
    passes = 3
    steps = -(-passes * size // batch)
    visited = [i for step in range(1, steps + 1) for i in noise.batch_indices(seed, step, batch, size)]
    for start in range(0, passes * size, size):
        assert sorted(visited[start : start + size]) == list(range(size))


def test_a_batch_across_a_boundary_ends_one_pass_and_begins_the_next() -> None:
    # 10 prompts in batches of 4: step 3 takes positions 8 to 11, two of pass 0 and two of pass 1.
    first, second = noise.order(5, 0, 10), noise.order(5, 1, 10)
    assert noise.batch_indices(5, 3, 4, 10) == first[8:] + second[:2]
    assert first != second


@pytest.mark.parametrize("step", [1, 2, 7])
def test_a_step_finds_its_place_without_those_before(step: int) -> None:
    every = [i for n in range(1, 10) for i in noise.batch_indices(1, n, 6, 17)]
    assert noise.batch_indices(1, step, 6, 17) == every[6 * (step - 1) : 6 * step]


def test_a_batch_larger_than_the_data_goes_round() -> None:
    indices = noise.batch_indices(0, 1, 7, 3)
    assert sorted(indices[:3]) == sorted(indices[3:6]) == [0, 1, 2]
