"""What a reward says of pairs whose order is known, and how its best of n goes with a judge."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from safebench.analysis.frontier import Record
from safebench.analysis.rescored import KINDS, lift, order, verdict, within_prompts
from safebench.analysis.statistics import Estimate
from safebench.cli.main import main
from safebench.scoring import reward_check
from safebench.scoring.pairs import SPOILERS, Pair, over_spoiled
from safebench.scoring.reward_check import heldout_pairs, preferences


def record(proxy: list[list[float]], judge: list[list[float]] | None) -> Record:
    """A record of these scores."""
    scores = np.array(proxy)
    return Record(Path(), {}, scores, None if judge is None else np.array(judge), np.ones_like(scores))


def test_ties_count_as_wrong_and_are_told() -> None:
    found = order("echo", [1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 5.0, 3.0])
    assert (found.right.value, found.right.n, found.tied) == (0.5, 4, 1)
    assert (found.right.low, found.right.high) == pytest.approx((0.0676, 0.9324), abs=5e-5)  # Clopper-Pearson, 2 of 4


def test_correlation_is_within_prompts() -> None:
    # Between the prompts the two go together, within each they go apart; the last has no spread and no correlation.
    first = np.array([[0.0, 1.0, 2.0], [10.0, 11.0, 12.0], [5.0, 5.0, 5.0]])
    second = np.array([[2.0, 1.0, 0.0], [12.0, 11.0, 10.0], [1.0, 2.0, 3.0]])
    found = within_prompts(first, second)
    assert (found.value, found.n) == (pytest.approx(-1.0), 2)
    assert math.isnan(within_prompts(first[2:], second[2:]).value)


def test_lift_is_in_the_judges_spread() -> None:
    proxy = [[0.0, 1.0], [1.0, 0.0]]
    judge = [[0.0, 2.0], [4.0, 0.0]]
    found = lift(record(proxy, judge), 2)
    assert found is not None
    spread = np.std([0.0, 2.0, 4.0, 0.0], ddof=1)
    assert found.value == pytest.approx((1.0 + 2.0) / 2 / spread, rel=1e-12)
    assert lift(record(proxy, None), 2) is None and lift(record(proxy, [[1.0, 1.0]] * 2), 2) is None
    assert lift(record(proxy, judge), 4) is None, "two draws have no best of four"


@pytest.mark.parametrize(
    ("low", "high", "said"), [(0.1, 0.2, "are better"), (-0.2, -0.1, "are worse"), (-0.1, 0.1, "not shown that")]
)
def test_the_verdict_follows_the_interval(low: float, high: float, said: str) -> None:
    assert said in verdict(Estimate((low + high) / 2, low, high, 9, "t"))
    assert verdict(None) == "not shown"


def test_words_are_made_up_or_replaced_in_place() -> None:
    words = ["people", "usually", "swim", "in", "the", "lake"]
    pieces = [" other", " things", "ing", "!"]
    rng = random.Random(1)
    for _ in range(20):
        invented = SPOILERS["invented"]("turn", " ".join(words), pieces, rng)
        replaced = SPOILERS["replaced"]("turn", " ".join(words), pieces, rng)
        assert invented is not None and replaced is not None
        assert sum(one != other for one, other in zip(words, invented.split(), strict=True)) == 2  # a third
        changed = {new for old, new in zip(words, replaced.split(), strict=True) if old != new}
        assert changed <= {"other", "things", "ing"} and changed
    assert SPOILERS["invented"]("turn", "oh no", pieces, rng) is None


def test_a_harped_reply_says_one_word_more_often_and_a_clipped_one_is_a_part() -> None:
    words = ["people", "usually", "swim", "in", "the", "lake"]
    rng = random.Random(1)
    for _ in range(40):
        harped = SPOILERS["harped"]("a turn", " ".join(words), [], rng)
        clipped = SPOILERS["clipped"]("a turn", " ".join(words), [], rng)
        assert harped is not None and clipped is not None
        new = [new for old, new in zip(words, harped.split(), strict=True) if old != new]
        assert len(set(new)) == 1 and new[0] in {*words, "a", "turn"}
        assert clipped.rstrip("?!.") in " ".join(words) and len(clipped.split()) <= 2
    assert SPOILERS["doubled"]("a turn", " so far ", [], rng) in {"so far so far", "so far so far so far"}
    assert SPOILERS["harped"]("a turn", "just three words", [], rng) is None
    assert SPOILERS["clipped"]("a turn", "two words", [], rng) is None


def test_every_kind_has_pairs_and_the_person_is_always_better() -> None:
    pairs = heldout_pairs()[:64]
    people = {(pair.turn, pair.reply) for pair in pairs}
    found = preferences(pairs, ["sure thing"] * len(pairs))
    assert {p.kind for p in found} == KINDS.keys() and all(
        (p.better.turn, p.better.reply) in people and p.better.turn == p.worse.turn for p in found
    )
    assert found == preferences(pairs, ["sure thing"] * len(pairs))
    assert [p.worse.reply for p in found if p.kind == "echo"] == [p.better.turn for p in found if p.kind == "echo"]
    assert over_spoiled([Pair("", "hm", "oh")], ["oh"], [], random.Random(0), ("replaced",)) == []


REWARD = """
def long(prompts, replies):
    return [float(len(reply)) for reply in replies]


def short(prompts, replies):
    return [-float(len(reply)) for reply in replies]
"""


def test_a_reward_is_checked_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``long`` likes length: people write more than "yeah", shuffling and made-up words of any length do not matter."""
    (tmp_path / "lengths.py").write_text(REWARD, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    some = heldout_pairs()[:24]
    monkeypatch.setattr(reward_check, "heldout_pairs", lambda: some)
    few = ["--draws", "16", "--set", "evaluation.prompts=4"]
    code = main(["check-reward", "lengths:long", "--judge", "lengths:short", *few])
    said = capsys.readouterr()
    assert code == 0, said.err
    (folder,) = (tmp_path / "results" / "reward-checks").glob("*/best-of-n/*")
    orders = {one["kind"]: one for one in json.loads((folder / "orders.json").read_text())["orders"]}
    shuffled = orders["shuffled"]
    assert shuffled["right"]["value"] == 0.0 and shuffled["tied"] == shuffled["right"]["n"]
    assert orders["empty"]["right"]["value"] == 1.0
    longer = [len(p.reply) > len(p.turn) for p in some]
    assert orders["echo"]["right"]["value"] == pytest.approx(sum(longer) / len(longer))
    # It likes length alone: what a search finds scores the same whatever the turn, and above most that people say.
    written = json.loads((folder / "orders.json").read_text())
    liked, people = written["liked"], written["people"]
    assert [one["score"]["value"] for one in liked] == [float(len(one["reply"])) for one in liked]
    assert [len(one["reply"]) for one in liked] == sorted((len(one["reply"]) for one in liked), reverse=True)
    assert people["value"] == pytest.approx(sum(len(p.reply) for p in some[12:]) / 12)
    assert f"{liked[0]['reply']}  " in said.out
    assert "correlation with lengths:short within a prompt: −1" in said.out
    assert "its best replies are worse by the judge" in said.out
    assert main(["check-reward", "lengths:long", "--judge", "", *few]) == 0
    alone = capsys.readouterr().out
    assert "correlation" not in alone and "nothing, or a mark" in alone
    assert main(["check-reward", "lengths:none", *few]) in (2, 3)
