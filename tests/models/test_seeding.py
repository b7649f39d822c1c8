"""Random draws depend on their arguments alone, and batches walk through shuffled passes."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safebench.models import seeding

PACKAGE = Path(seeding.__file__).parents[1]


def draw(purpose: str, *where: int) -> list[float]:
    return torch.rand(3, dtype=torch.float64, generator=seeding.generator(purpose, *where)).tolist()


def test_a_generator_depends_on_its_arguments_and_on_nothing_else() -> None:
    first = draw("critic", 3)
    torch.manual_seed(5)
    torch.rand(7)
    assert draw("critic", 3) == first


def test_a_generator_leaves_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    draw("critic", 3)
    seeding.uniforms("rollout", 0, 1, range(4), 5)
    seeding.batch_indices(0, 3, 8, 10)
    assert torch.equal(torch.get_rng_state(), before)


def test_each_argument_counts_and_none_runs_into_the_next() -> None:
    # (1, 23) against (12, 3): the arguments are told apart even where their digits are the same.
    keys = [("a", 1, 23), ("a", 12, 3), ("a", 123), ("b", 1, 23), ("a1", 23), ("a", 1, 24), ("a", 1, 23, 0), ("a",)]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)


def test_draws_do_not_change_between_releases() -> None:
    """A golden from the day of writing: every recorded run depends on it."""
    assert draw("rollout", 0, 1, 0) == [0.05381323620354894, 0.5604193267897117, 0.21051593356216003]


def test_a_rows_noise_does_not_depend_on_its_neighbours() -> None:
    whole = seeding.uniforms("rollout", 7, 2, range(6), 5)
    parts = [seeding.uniforms("rollout", 7, 2, rows, 5) for rows in (range(0, 1), range(1, 4), range(4, 6))]
    assert torch.equal(torch.cat(parts), whole)
    assert len(set(whole.flatten().tolist())) == whole.numel()


def test_a_rows_noise_starts_alike_whatever_its_length() -> None:
    long, short = (seeding.uniforms("rollout", 7, 2, range(3), tokens) for tokens in (9, 4))
    assert torch.equal(long[:, :4], short)


def test_noise_is_uniform() -> None:
    x = seeding.uniforms("rollout", 0, 1, range(200), 50)
    assert x.dtype == torch.float64
    assert x.min() >= 0
    assert x.max() < 1
    # 10,000 draws: the mean's deviation is 0.289 / 100; five of them.
    assert abs(float(x.mean()) - 0.5) < 5 * 0.00289


@given(st.integers(0, 1000), st.integers(0, 50), st.integers(1, 40))
def test_an_order_is_a_permutation(seed: int, epoch: int, size: int) -> None:
    assert sorted(seeding.order(seed, epoch, size)) == list(range(size))


@given(seed=st.integers(0, 1000), batch=st.integers(1, 12), size=st.integers(1, 30))
def test_every_pass_visits_every_prompt_once(seed: int, batch: int, size: int) -> None:
    passes = 3
    steps = -(-passes * size // batch)
    visited = [i for step in range(1, steps + 1) for i in seeding.batch_indices(seed, step, batch, size)]
    for start in range(0, passes * size, size):
        assert sorted(visited[start : start + size]) == list(range(size))


def test_a_batch_across_a_boundary_ends_one_pass_and_begins_the_next() -> None:
    # 10 prompts in batches of 4: step 3 takes positions 8 to 11, two of pass 0 and two of pass 1.
    first, second = seeding.order(5, 0, 10), seeding.order(5, 1, 10)
    assert seeding.batch_indices(5, 3, 4, 10) == first[8:] + second[:2]
    assert first != second


@pytest.mark.parametrize("step", [1, 2, 7])
def test_a_step_finds_its_place_without_those_before(step: int) -> None:
    every = [i for n in range(1, 10) for i in seeding.batch_indices(1, n, 6, 17)]
    assert seeding.batch_indices(1, step, 6, 17) == every[6 * (step - 1) : 6 * step]


def test_a_batch_larger_than_the_data_goes_round() -> None:
    indices = seeding.batch_indices(0, 1, 7, 3)
    assert sorted(indices[:3]) == sorted(indices[3:6]) == [0, 1, 2]


def test_draws_are_the_cpus_whatever_the_type() -> None:
    """Weights in bfloat16 are those in float32, rounded; a float64 weight has draws of its own precision."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        draws = seeding.Draws("adapter", 3)
        target = torch.empty(5, 4, dtype=dtype)
        draws.kaiming(target)
        bias = torch.empty(4, dtype=dtype)
        draws.uniform(bias, 0.5)
        draws.normal(bias, 0.1)
        found[dtype] = torch.cat([target.flatten(), bias])
    assert torch.equal(found[torch.bfloat16], found[torch.float32].to(torch.bfloat16))
    assert found[torch.float64].to(torch.float32).unique().numel() == 24
    assert float(found[torch.float32][:20].abs().max()) <= 0.5


def test_draws_are_those_of_torchs_own_initialisers() -> None:
    """As every recorded run began: ``nn.init`` with the same generator, in the same order."""
    draws, generator = seeding.Draws("critic", 4), seeding.generator("critic", 4)
    mine, theirs = (torch.nn.Parameter(torch.empty(6, 3)) for _ in range(2))
    draws.kaiming(mine)
    torch.nn.init.kaiming_uniform_(theirs, a=5**0.5, generator=generator)
    assert torch.equal(mine, theirs)
    draws.normal(mine, 0.02)
    torch.nn.init.normal_(theirs, 0.0, 0.02, generator=generator)
    assert torch.equal(mine, theirs)
    with torch.no_grad():
        draws.uniform(mine, 0.3)
        theirs.uniform_(-0.3, 0.3, generator=generator)
    assert torch.equal(mine, theirs)
    assert mine.grad_fn is None


def test_initial_weights_leave_torchs_own_generator_as_it_was() -> None:
    before = torch.get_rng_state()
    with seeding.initial_weights(2):
        first = torch.nn.Linear(3, 2).weight
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    with seeding.initial_weights(2):
        assert torch.equal(torch.nn.Linear(3, 2).weight, first)


def test_large_initial_weights_are_the_same_for_every_number_of_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_rng_state()
    with torch.random.fork_rng([]):  # in one piece, from torch's own generator
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=seeding.generator("weights", 3))))
        whole = torch.nn.Embedding(1100, 2000).weight.detach()
    found = []
    for number in (1, 2):
        monkeypatch.setattr(os, "cpu_count", lambda number=number: number)
        with seeding.initial_weights(3):
            found.append(torch.nn.Embedding(1100, 2000).weight.detach())
            found.append(torch.nn.Linear(2000, 1100, dtype=torch.bfloat16).weight.detach())
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(found[0], whole)
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[3])
    normal, uniform = found[0].double(), found[1].double()
    assert float(normal.mean().abs()) < 5 / normal.numel() ** 0.5
    assert float((normal.square().mean() - 1).abs()) < 5 * (2 / normal.numel()) ** 0.5
    assert float(uniform.abs().max()) <= 2000**-0.5 * (1 + 2**-8)
    # No piece is another's copy: of two of them, element by element, the correlation is that of independent draws.
    one, other = normal.flatten()[: 2**20], normal.flatten()[2**20 : 2**21]
    assert float((one * other).mean().abs()) < 5 / 2**10


DRAWN_BY_TORCH = (
    {f"torch.{name}" for name in ("rand", "randn", "randint", "randperm", "normal", "multinomial", "bernoulli")}
    | {f"torch.{name}_like" for name in ("rand", "randn", "randint")}
    | {"torch.Generator", "torch.manual_seed", "torch.seed", "torch.cuda.manual_seed", "torch.cuda.manual_seed_all"}
    | {"torch.random.manual_seed", "torch.random.fork_rng", "torch.default_generator.manual_seed"}
)
IN_PLACE = {"normal_", "uniform_", "random_", "bernoulli_", "exponential_", "log_normal_", "cauchy_", "geometric_"}
FILLING = {"zeros_", "ones_", "constant_", "eye_", "dirac_"}
"""Of ``nn.init``: what fills without drawing."""


def drawing(tree: ast.AST) -> list[str]:
    """Name the calls in a file of ours that draw by torch, or hand on a generator."""
    found = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        last = name.rsplit(".", 1)[-1]
        if (
            name in DRAWN_BY_TORCH
            or last in IN_PLACE
            or ("nn.init." in name and last not in FILLING)
            or any(keyword.arg == "generator" for keyword in call.keywords)
        ):
            found.append(f"line {call.lineno}: {name}")
    return found


def test_nothing_else_draws_by_torch() -> None:
    """One module draws; the embedded world is built by itself, on the CPU, before any run."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        torches = "torch" in {name for node in ast.walk(tree) for name in imported(node)}
        if torches and path != PACKAGE / "models" / "seeding.py":
            found[path.relative_to(PACKAGE).as_posix()] = drawing(tree)
    assert len(found) > 30
    assert {path: calls for path, calls in found.items() if calls} == {}


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    return [(node.module or "").split(".")[0]] if isinstance(node, ast.ImportFrom) else []


@pytest.mark.parametrize(
    "line",
    [
        "nn.init.kaiming_uniform_(parameter, a=5**0.5, generator=generator)",
        "torch.nn.init.normal_(weight)",
        "x = torch.randperm(size)",
        "weight.uniform_(-1, 1)",
        "f(x, generator=noise.generator('critic', 0))",
        "torch.manual_seed(1)",
    ],
)
def test_a_draw_is_seen(line: str) -> None:
    assert drawing(ast.parse(line))
    calls = "nn.init.zeros_(layer.bias); draws.normal(weight, 0.1); noise.normals('x', 0, 1, [0])"
    assert not drawing(ast.parse(calls))
