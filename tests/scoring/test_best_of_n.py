"""Best of n: the estimator against every subset, the KL bound against exact KLs, and records of a real tiny model."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safebench.analysis import frontier as evidence
from safebench.analysis.frontier import best_of, expected_best, kl_bound, rank_weights
from safebench.config.schema import Settings
from safebench.errors import BadResource, Interrupted, UsageError
from safebench.models import seeding
from safebench.models.assemble import assemble
from safebench.models.generation import encode, sample
from safebench.models.libraries import quiet_libraries
from safebench.models.prompts import encode_prompt
from safebench.recording import manifest
from safebench.scoring import best_of_n
from safebench.scoring.best_of_n import record_folder, sample_best_of_n
from tests.support.runs import make_parts, tiny_run

SCORES = st.lists(st.integers(-5, 5), min_size=1, max_size=7)


def over_all_subsets(by: list[float], values: list[float], n: int) -> float:
    """Mean over every subset of n draws of the value of its best, a fair die among its bests."""
    found = []
    for subset in itertools.combinations(range(len(by)), n):
        top = max(by[i] for i in subset)
        found.append(fmean(values[i] for i in subset if by[i] == top))
    return fmean(found)


def test_weights_by_hand() -> None:
    # Of four, two are drawn: six pairs, of which the smallest is never, the largest three times the larger one.
    assert rank_weights(4, 2).tolist() == [0, 1 / 6, 2 / 6, 3 / 6]
    assert rank_weights(4, 3).tolist() == [0, 0, 1 / 4, 3 / 4]


def test_best_of_n_by_hand() -> None:
    proxy, judge = np.array([[3.0, 1.0, 4.0, 2.0]]), np.array([[10.0, 20.0, 60.0, 40.0]])
    # Pairs and what wins: 31→10, 34→60, 32→10, 14→60, 12→40, 42→60.
    assert expected_best(proxy, judge, 2)[0] == pytest.approx(240 / 6, rel=1e-15)
    assert [expected_best(proxy, judge, n)[0] for n in (1, 3, 4)] == [32.5, 47.5, 60.0]


def test_ties_share_their_ranks() -> None:
    proxy, judge = np.array([[1.0, 1.0, 0.0]]), np.array([[6.0, 0.0, 9.0]])
    # Pairs: the two that tie (3 on average), and each of them against the last (6 and 0).
    assert expected_best(proxy, judge, 2)[0] == pytest.approx(3.0, rel=1e-15)
    assert expected_best(proxy, judge, 3)[0] == pytest.approx(3.0, rel=1e-15)


@given(SCORES, st.data())
def test_the_estimator_is_the_mean_over_all_subsets(by: list[int], data: st.DataObject) -> None:
    values = data.draw(st.lists(st.floats(-10, 10), min_size=len(by), max_size=len(by)))
    n = data.draw(st.integers(1, len(by)))
    found = expected_best(np.array([by], dtype=float), np.array([values]), n)[0]
    assert found == pytest.approx(over_all_subsets([float(x) for x in by], values, n), rel=1e-12, abs=1e-12)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=64))
def test_the_proxy_rises_with_n_from_the_mean_to_the_maximum(scores: list[float]) -> None:
    proxy = np.array([scores])
    curve = [float(expected_best(proxy, proxy, n)[0]) for n in range(1, len(scores) + 1)]
    assert curve[0] == pytest.approx(fmean(scores), rel=1e-12, abs=1e-9)
    assert curve[-1] == pytest.approx(max(scores), rel=1e-12, abs=1e-9)
    assert all(after >= before - 1e-9 for before, after in itertools.pairwise(curve))


def test_more_than_the_draws_cannot_be_asked() -> None:
    with pytest.raises(ValueError, match="best of 5 out of 4"):
        rank_weights(4, 5)
    with pytest.raises(ValueError, match="best of 0"):
        kl_bound(0)


def test_the_kl_bound_by_hand() -> None:
    assert kl_bound(1) == 0.0
    assert kl_bound(2) == pytest.approx(0.1931471805599453, rel=1e-12)  # log 2 - 1/2
    assert kl_bound(64) == pytest.approx(3.1745080833596715, rel=1e-12)  # 6 log 2 - 63/64


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=12), st.integers(1, 40))
def test_the_bound_holds_for_every_distribution(weights: list[float], n: int) -> None:
    """Over distinct outcomes in the order of their reward, best of n has probability F(i)^n - F(i - 1)^n."""
    chances = np.array(weights) / sum(weights)
    below = np.concatenate([[0.0], np.cumsum(chances)])
    best = np.diff(below**n)
    kept = best > 0
    kl = float(np.sum(best[kept] * np.log(best[kept] / chances[kept])))
    assert kl <= kl_bound(n) + 1e-9


def test_the_bound_is_met_where_no_outcome_is_drawn_twice() -> None:
    edges = np.linspace(0.0, 1.0, 200_001)
    best = np.diff(edges**8)
    assert float(np.sum(best * np.log(best * 200_000))) == pytest.approx(kl_bound(8), abs=1e-4)


def test_intervals_are_over_prompts() -> None:
    proxy = np.array([[1.0, 2.0], [3.0, 5.0], [2.0, 2.0]])
    found = best_of(proxy, None, 2)
    assert (found.proxy.value, found.proxy.n, found.judge) == (3.0, 3, None)
    # t(0.975, 2) = 4.302652730 times the deviation of 2, 5, 2 (sqrt 3) over sqrt 3
    assert found.proxy.margin == pytest.approx(4.302652729911275, rel=1e-9)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def settings(parts: Path) -> Settings:
    return tiny_run(parts, "ppo", evaluation__prompts=10, reward__judge="tiny_rewards:fragile", prompts__max_tokens=8)


@pytest.fixture(scope="module")
def folder(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_best_of_n(settings, tmp_path_factory.mktemp("results"), draws=8)


def test_the_record_is_the_initial_policys_replies_scored(settings: Settings, folder: Path) -> None:
    record = evidence.read_record(folder)
    assert (record.prompts, record.draws) == (10, 8)
    assert [best.n for best in record.curve] == [1, 2, 4, 8]
    with quiet_libraries():
        world = assemble(settings, torch.device("cpu"))
    texts = [text for text in world.prompts.heldout[4:8] for _ in range(8)]
    encoded = encode(texts, [encode_prompt(world.policy.tokenizer, t) for t in texts], 8, 0, torch.device("cpu"))
    draws = torch.cat([seeding.uniforms("best-of-n", 0, prompt, range(8), 6) for prompt in range(4, 8)])
    replies = sample(world.policy, encoded, draws, 1.0)
    scores = world.reward.score(texts, replies.replies).reshape(4, 8)
    assert record.proxy[4:8].tolist() == scores.tolist()
    assert record.tokens[4:8].tolist() == replies.mask.sum(-1).reshape(4, 8).tolist()
    assert len({tuple(row) for row in draws.tolist()}) == 32


def test_the_record_says_what_made_it_as_a_run_does(settings: Settings, folder: Path) -> None:
    made = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert made["hashes"] == manifest.hashes_of(settings)
    assert made["settings"]["rollout.reply_tokens"] == 6
    assert made["command"].startswith("safebench report ppo --best-of-n 8 --model ")
    assert made["complete"] is True


def test_the_seed_and_the_arm_do_not_matter(parts: Path, settings: Settings, folder: Path, tmp_path: Path) -> None:
    values = {"evaluation__prompts": 10, "reward__judge": "tiny_rewards:fragile", "prompts__max_tokens": 8}
    other = tiny_run(parts, "safe", seed=7, **values)
    again = sample_best_of_n(other, tmp_path, draws=8)
    assert again.name == folder.name
    assert (again / "scores.csv").read_bytes() == (folder / "scores.csv").read_bytes()


def test_a_finished_record_is_left_alone(settings: Settings, folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    seen: list[int] = []
    assert sample_best_of_n(settings, folder.parents[2], draws=8, progress=lambda done, _: seen.append(done)) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert seen == []


def test_an_interrupted_record_goes_on_and_ends_equal(settings: Settings, folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if len(seen) == 1:
            raise Interrupted("stop")

    with pytest.raises(Interrupted):
        sample_best_of_n(settings, tmp_path, draws=8, progress=stop)
    place = record_folder(settings, tmp_path, 8)
    with pytest.raises(BadResource, match="not finished"):
        evidence.read_record(place)
    with (place / "scores.csv").open("a", encoding="utf-8") as file:
        file.write("4,0,1.0,1.0,3\n4,1,half a li")
    assert sample_best_of_n(settings, tmp_path, draws=8, progress=stop) == place
    assert seen == [(32, 80), (64, 80), (80, 80)]
    assert (place / "scores.csv").read_bytes() == (folder / "scores.csv").read_bytes()


def test_a_record_of_other_files_is_not_continued(settings: Settings, tmp_path: Path) -> None:
    place = sample_best_of_n(settings, tmp_path, draws=2)
    manifest = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
    manifest["hashes"]["judge"] = "another"
    (place / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UsageError, match=r"other files \(judge\)"):
        sample_best_of_n(settings, tmp_path, draws=2)


@pytest.mark.parametrize(("judge", "fault"), [("nothing", "not finite"), ("short", "1 values"), ("raising", "tea")])
def test_a_judge_that_breaks_its_word_leaves_no_record(parts: Path, tmp_path: Path, judge: str, fault: str) -> None:
    broken = tiny_run(parts, "ppo", evaluation__prompts=10, reward__judge=f"tiny_rewards:{judge}")
    with pytest.raises(BadResource, match=fault):
        sample_best_of_n(broken, tmp_path, draws=2)
    place = record_folder(broken, tmp_path, 2)
    assert not (place / "scores.csv").exists(), "it is asked before anything is drawn"
    with pytest.raises(BadResource, match="no record"):
        evidence.read_record(place)


def test_without_a_judge_there_is_no_judge_curve(parts: Path, tmp_path: Path) -> None:
    alone = tiny_run(parts, "ppo", evaluation__prompts=10)
    record = evidence.read_record(sample_best_of_n(alone, tmp_path, draws=2))
    assert record.judge is None
    assert all(best.judge is None for best in record.curve)


def test_no_draws_are_refused(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="0 draws"):
        sample_best_of_n(settings, tmp_path, draws=0)
    assert best_of_n.DRAWS == 64
