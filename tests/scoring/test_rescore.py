"""Saved replies scored again: what is written, when nothing is, and what a comparison may make of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
import torch

from safebench.analysis import rescored, runs
from safebench.analysis.compare import compare
from safebench.analysis.rescored import judged, judged_by
from safebench.errors import BadResource, ComparisonRefused, MissingResource, UsageError
from safebench.models.libraries import quiet_libraries
from safebench.models.rewards import load_reward
from safebench.recording.files import FolderLock
from safebench.recording.jsonl import format_line
from safebench.scoring.rescore import Rescored, grouped, read_replies, rescore, rescore_all
from safebench.training import run as running
from tests.support.runs import make_parts, tiny_run
from tests.support.synthetic import write_run

REWARDS = '''
from pathlib import Path

HERE = Path(__file__).parent

def length(prompts, replies):
    """Score by length, and note every call."""
    with (HERE / "calls").open("a") as file:
        file.write(f"{len(replies)}\\n")
    if (HERE / "limit").exists() and len((HERE / "calls").read_text().split()) > int((HERE / "limit").read_text()):
        raise RuntimeError("out of tea")
    return [float(len(reply)) for reply in replies]

def echo(prompts, replies):
    return [float(len(prompt)) for prompt in prompts]

def nothing(prompts, replies):
    return [float("nan")] * len(replies)

def short(prompts, replies):
    return [1.0]

def words(prompts, replies):
    return ["good"] * len(replies)
'''
REWARD = "noting_rewards:length"


@pytest.fixture
def rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the reward functions, imported anew."""
    folder = tmp_path / "rewards"
    folder.mkdir()
    (folder / "noting_rewards.py").write_text(REWARDS, encoding="utf-8")
    sys.modules.pop("noting_rewards", None)
    monkeypatch.syspath_prepend(str(folder))
    return folder


def calls(rewards: Path) -> list[int]:
    """How many replies each call of the reward got."""
    path = rewards / "calls"
    return [int(line) for line in path.read_text(encoding="utf-8").split()] if path.exists() else []


def made(
    root: Path, experiment: str, seed: int, rows: Sequence[Sequence[int]], overrides: Sequence[str] = ()
) -> Path:
    """A run of five steps, evaluated at 0, 2, 4; ``rows`` are the held-out rows kept at each.

    Row r's reply at step s has r + s letters. One training reply is kept at each step.
    """
    columns: dict[str, list[float | None]] = {"eval/reward": [0.0, None, 0.0, None, 0.0, None]}
    columns["eval/judge"] = [9.0, None, 9.0, None, 9.0, None]
    columns["reward/mean"] = [None, 1.0, 1.0, 1.0, 1.0, 1.0]
    folder = write_run(root, experiment, seed, columns, overrides=["evaluation.prompts=4", *overrides])
    lines = []
    for step in range(6):
        if step:
            lines.append({"step": step, "row": 0, "prompt": "p", "reply": "x" * step, "split": "train"})
        if step % 2 == 0:
            kept = rows[step // 2]
            lines += [
                {"step": step, "row": row, "prompt": f"p{row}", "reply": "y" * (row + step), "split": "heldout"}
                for row in kept
            ]
    text = "".join(format_line({"reward": 0.5, "judge": None, **line}) + "\n" for line in lines)
    (folder / "samples.jsonl").write_text(text, encoding="utf-8")
    return folder


FULL = [range(4)] * 3
PART = [range(4), range(2), [0, 1, 3]]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "rescored").glob("*"))}


def test_every_reply_is_scored_and_every_step_described(rewards: Path, tmp_path: Path) -> None:
    folder = made(tmp_path, "ppo", 0, PART)
    found = rescore(folder, REWARD)
    assert found == Rescored(folder, REWARD, found.files, 14, 3, 2, 4, True)
    assert found.files.name.startswith("noting_rewards-length-")
    text = found.files.with_name(f"{found.files.name}.csv").read_text(encoding="utf-8")
    assert text.splitlines() == [
        "step,split,n,of,mean,std,common_n,common_mean,common_std",
        "0,heldout,4,4,1.5,1.2909944487358056,2,0.5,0.7071067811865476",
        "1,train,1,32,1.0,,,,",
        "2,train,1,32,2.0,,,,",
        "2,heldout,2,4,2.5,0.7071067811865476,2,2.5,0.7071067811865476",
        "3,train,1,32,3.0,,,,",
        "4,train,1,32,4.0,,,,",
        "4,heldout,3,4,5.333333333333333,1.5275252316519468,2,4.5,0.7071067811865476",
        "5,train,1,32,5.0,,,,",
    ]
    lines = found.files.with_name(f"{found.files.name}.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[-2]) == {"step": 4, "split": "heldout", "row": 3, "score": 7.0}
    assert len(lines) == 14
    described = json.loads(found.files.with_name(f"{found.files.name}.json").read_text(encoding="utf-8"))
    assert described["reward"] == REWARD
    assert described["versions"]["torch"]
    assert len(files(folder)) == 3


def test_the_reward_sees_the_prompt_of_each_reply(rewards: Path, tmp_path: Path) -> None:
    folder = made(tmp_path, "ppo", 0, FULL)
    rescore(folder, "noting_rewards:echo")
    assert rescored.read(folder, "noting_rewards:echo").heldout[2] == dict.fromkeys(range(4), 2.0)


def test_the_same_reward_does_nothing_twice(rewards: Path, tmp_path: Path) -> None:
    folder = made(tmp_path, "ppo", 0, FULL)
    first, asked = rescore(folder, REWARD), calls(rewards)
    before = files(folder)
    again = rescore(folder, REWARD)
    assert (first.fresh, again.fresh) == (True, False)
    assert again.replies == first.replies
    assert (files(folder), calls(rewards)) == (before, asked)
    assert rescore(folder, REWARD, force=True).fresh
    assert len(calls(rewards)) == 2 * len(asked)


def test_other_files_or_other_replies_are_scored_anew(rewards: Path, tmp_path: Path) -> None:
    folder = made(tmp_path, "ppo", 0, FULL)
    rescore(folder, REWARD)
    with (rewards / "noting_rewards.py").open("a", encoding="utf-8") as file:
        file.write("# mended\n")
    assert rescore(folder, REWARD).fresh
    samples = folder / "samples.jsonl"
    samples.write_text(samples.read_text(encoding="utf-8").replace('"xxxxx"', '"xxxxy"'), encoding="utf-8")
    assert rescore(folder, REWARD).fresh
    assert not rescore(folder, REWARD).fresh


@pytest.mark.parametrize(
    ("name", "fault"), [("nothing", "not finite"), ("short", "1 values"), ("words", "not a number")]
)
def test_a_reward_that_breaks_its_word_writes_nothing(rewards: Path, tmp_path: Path, name: str, fault: str) -> None:
    folder = made(tmp_path, "ppo", 0, FULL)
    with pytest.raises(BadResource, match=fault):
        rescore(folder, f"noting_rewards:{name}")
    assert not [name for name in files(folder) if not name.startswith(".")]
    with pytest.raises(MissingResource, match="was not scored"):
        rescored.read(folder, f"noting_rewards:{name}")


def test_a_reward_that_fails_half_way_goes_on_without_asking_again(rewards: Path, tmp_path: Path) -> None:
    folder = made(tmp_path, "ppo", 0, FULL)
    whole = rescore(folder, REWARD, batch=2)
    before, asked = files(folder), calls(rewards)
    (rewards / "limit").write_text(str(len(asked) + 4), encoding="utf-8")
    with pytest.raises(BadResource, match="out of tea"):
        rescore(folder, REWARD, batch=2, force=True)
    assert {name: data for name, data in files(folder).items() if not name.startswith(".")} == before
    (rewards / "limit").unlink()
    (folder / "rescored" / f"{whole.files.name}.json").unlink()
    seen: list[tuple[int, int]] = []
    rescore(folder, REWARD, batch=2, progress=lambda _, done, total: seen.append((done, total)))
    assert calls(rewards)[len(asked) + 5 :] == asked[4:]
    assert seen[-1] == (17, 17)
    after = files(folder)
    assert after.keys() == before.keys()
    for name in before:
        assert name.endswith(".json") or after[name] == before[name]


def test_scores_of_other_groups_are_not_continued(rewards: Path, tmp_path: Path) -> None:
    folder = made(tmp_path, "ppo", 0, FULL)
    (rewards / "limit").write_text("2", encoding="utf-8")
    with pytest.raises(BadResource):
        rescore(folder, REWARD, batch=2)
    (rewards / "limit").unlink()
    rescore(folder, REWARD, batch=3)
    assert sum(calls(rewards)[3:]) == 17
    assert rescored.read(folder, REWARD).heldout[4] == {0: 4.0, 1: 5.0, 2: 6.0, 3: 7.0}


def test_an_evaluation_is_scored_by_itself_and_training_replies_together(rewards: Path, tmp_path: Path) -> None:
    replies = read_replies(made(tmp_path, "ppo", 0, FULL) / "samples.jsonl")
    groups = grouped(replies, 3)
    assert sorted(row for group in groups for row in group) == list(range(17))
    assert [[(replies[row].split, replies[row].step) for row in group] for group in groups] == [
        *([("heldout", 0)] * 3, [("heldout", 0)]),
        *([("train", 1), ("train", 2), ("train", 3)], [("train", 4), ("train", 5)]),
        *([("heldout", 2)] * 3, [("heldout", 2)]),
        *([("heldout", 4)] * 3, [("heldout", 4)]),
    ]


def test_several_runs_share_one_reward(rewards: Path, tmp_path: Path) -> None:
    folders = [made(tmp_path, "ppo", seed, FULL) for seed in range(2)]
    assert [one.folder for one in rescore_all(folders, REWARD)] == folders
    with pytest.raises(UsageError, match="batch of 0"):
        rescore_all(folders, REWARD, batch=0)


def _twice(lines: list[str]) -> list[str]:
    return [*lines, lines[-1]]


def _torn(lines: list[str]) -> list[str]:
    return [*lines[:2], lines[2][:20], *lines[3:]]


def _other_prompt(lines: list[str]) -> list[str]:
    return [line.replace('"p1"', '"q1"') if '"step": 4' in line else line for line in lines]


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [(_twice, "there twice"), (_torn, "line 3 is damaged"), (_other_prompt, "another prompt"), (lambda _: [], "empty")],
)
def test_damaged_samples_are_named(
    rewards: Path, tmp_path: Path, spoil: Callable[[list[str]], list[str]], fault: str
) -> None:
    folder = made(tmp_path, "ppo", 0, FULL)
    lines = spoil((folder / "samples.jsonl").read_text(encoding="utf-8").splitlines())
    (folder / "samples.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    with pytest.raises(MissingResource, match=fault):
        rescore(folder, REWARD)
    assert calls(rewards) == []


def test_what_is_no_run_or_still_runs_is_refused(rewards: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingResource, match="no run folder"):
        rescore(tmp_path, REWARD)
    folder = made(tmp_path, "ppo", 0, FULL)
    with FolderLock(folder), pytest.raises(UsageError, match="another process"):
        rescore(folder, REWARD)
    with pytest.raises(UsageError, match="embedded-judge"):
        rescore(folder, "embeded-judge")


def test_a_run_judged_again(rewards: Path, tmp_path: Path) -> None:
    folder = made(tmp_path, "ppo", 0, FULL)
    run = runs.read(folder)
    with pytest.raises(MissingResource, match="was not scored") as caught:
        judged_by(run, REWARD)
    assert caught.value.hint == f"`safebench rescore {folder} --reward {REWARD}` makes it."
    rescore(folder, REWARD)
    again = judged_by(run, REWARD)
    np.testing.assert_array_equal(again.column("eval/judge"), [1.5, np.nan, 3.5, np.nan, 5.5, np.nan])
    assert again.judge_sigma0 == stdev([0, 1, 2, 3])
    assert again.watched()[2]["eval/judge"] == "3.5"
    assert again.metrics["eval/judge"][4] == 5.5
    assert again.settings["reward"]["judge"] == REWARD
    assert again.manifest["hashes"]["judge"] != run.manifest["hashes"].get("judge")
    assert (run.column("eval/judge")[0], run.judge_sigma0) == (9.0, 0.5)


def test_a_part_is_never_compared_with_the_whole(rewards: Path, tmp_path: Path) -> None:
    part, whole = made(tmp_path, "ppo", 0, PART), made(tmp_path, "safe", 0, FULL)
    rescore_all([part, whole], REWARD)
    groups = {"ppo": [runs.read(part)], "safe": [runs.read(whole)]}
    alone = judged_by(groups["ppo"][0], REWARD)
    assert alone.column("eval/judge")[[0, 2, 4]].tolist() == [0.5, 2.5, 4.5]  # rows 0 and 1 in every step
    assert alone.judge_sigma0 == stdev([0, 1])
    assert judged_by(groups["safe"][0], REWARD).column("eval/judge")[0] == 1.5
    apart = {name: [judged_by(run, REWARD) for run in held] for name, held in groups.items()}
    with pytest.raises(ComparisonRefused, match=r"evaluation\.prompts is 2 in ppo, 4 in safe"):
        compare(apart)
    found = judged(groups, REWARD)
    assert (found.rows, found.of, found.full) == (2, 4, False)
    assert "only 2 of up to 4" in found.note
    assert found.groups["safe"][0].column("eval/judge")[[0, 2, 4]].tolist() == [0.5, 2.5, 4.5]
    assert found.groups["safe"][0].judge_sigma0 == stdev([0, 1])
    table = compare(found.groups)
    assert table.row("judge_final").differences["safe"].value == 0.0
    assert judged({"safe": groups["safe"]}, REWARD).full
    assert "all 4 held-out" in judged({"safe": groups["safe"]}, REWARD).note


def test_the_runs_own_judge_needs_no_second_look(rewards: Path, tmp_path: Path) -> None:
    groups = {name: [runs.read(made(tmp_path, name, 0, PART))] for name in ("ppo", "safe")}
    found = judged(groups, "embedded-judge")
    assert found.groups == groups
    assert (found.again, "as the runs measured it" in found.note) == (False, True)
    groups["safe"] = [runs.read(made(tmp_path, "safe", 1, PART, ["reward.judge=null"]))]
    with pytest.raises(MissingResource, match="was not scored by embedded-judge"):
        judged(groups, "embedded-judge")


def test_an_evaluation_without_replies_cannot_be_judged(rewards: Path, tmp_path: Path) -> None:
    folder = made(tmp_path, "ppo", 0, [range(4), [], range(4)])
    rescore(folder, REWARD)
    with pytest.raises(BadResource, match="kept no held-out replies at step 2"):
        judged_by(runs.read(folder), REWARD)


def test_rows_that_nothing_shares_cannot_be_judged(rewards: Path, tmp_path: Path) -> None:
    folders = [made(tmp_path, "ppo", 0, [[0, 1]] * 3), made(tmp_path, "safe", 0, [[1, 2]] * 3)]
    rescore_all(folders, REWARD)
    with pytest.raises(BadResource, match="kept 1 held-out replies that all"):
        judged({"ppo": [runs.read(folders[0])], "safe": [runs.read(folders[1])]}, REWARD)


def test_scores_of_a_run_that_went_on_are_stale(rewards: Path, tmp_path: Path) -> None:
    folder = made(tmp_path, "ppo", 0, FULL)
    rescore(folder, REWARD)
    with (folder / "samples.jsonl").open("a", encoding="utf-8") as file:
        file.write(format_line({"step": 5, "row": 1, "prompt": "p", "reply": "z", "split": "train"}) + "\n")
    with pytest.raises(BadResource, match="has gone on since") as caught:
        rescored.read(folder, REWARD)
    assert "safebench rescore" in str(caught.value.hint)


def test_half_a_file_of_scores_is_damaged(rewards: Path, tmp_path: Path) -> None:
    folder = made(tmp_path, "ppo", 0, FULL)
    scores = rescore(folder, REWARD).files
    path = scores.with_name(f"{scores.name}.jsonl")
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
    with pytest.raises(BadResource, match="not whole"):
        rescored.read(folder, REWARD)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(BadResource, match="damaged"):
        rescored.read(folder, REWARD)


def test_names_of_files_are_the_rewards_or_hashed() -> None:
    assert rescored.slug("embedded-judge") == "embedded-judge"
    names = ["a:b", "a-b", "a--b", "a/b", "./a", "a"]
    assert len({rescored.slug(name) for name in names}) == len(names)


def test_a_manifest_may_say_that_a_run_is_not_paired(tmp_path: Path) -> None:
    folder = made(tmp_path, "ppo", 0, FULL)
    assert runs.read(folder).paired
    content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").write_text(json.dumps(content | {"paired": False}), encoding="utf-8")
    assert not runs.read(folder).paired


def test_a_column_is_read_once_and_cannot_be_spoilt(tmp_path: Path) -> None:
    run = runs.read(made(tmp_path, "ppo", 0, FULL))
    assert run.column("eval/judge") is run.column("eval/judge")
    with pytest.raises(ValueError, match="read-only"):
        run.column("eval/judge")[0] = 1.0
    assert np.isnan(run.column("not/there")).all()


def test_the_judge_of_a_real_run_says_the_same_again(tmp_path: Path) -> None:
    parts = make_parts(tmp_path)
    settings = tiny_run(parts, "ppo", reward__judge="tiny_rewards:share_of_a", recording__samples=3)
    folder = running.execute(settings, tmp_path / "results").folder
    found = rescore(folder, "tiny_rewards:share_of_a")
    run = runs.read(folder)
    assert (found.evaluations, found.common, found.of, found.replies) == (3, 16, 16, 3 * 16 + 6 * 3)
    again = judged_by(run, "tiny_rewards:share_of_a")
    np.testing.assert_array_equal(again.column("eval/judge"), run.column("eval/judge"))
    assert again.judge_sigma0 == run.judge_sigma0
    assert again.manifest["hashes"] == run.manifest["hashes"]


TALKING_REWARDS = '''
def turns(prompts, replies):
    """Score by what only the conversation says, and by the reply."""
    return [len(p.messages) + ord(p.messages[0]["content"][0]) + len(r) / 100 for p, r in zip(prompts, replies)]
'''
TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


def test_a_run_on_conversations_is_scored_again_as_it_was(tmp_path: Path) -> None:
    parts = make_parts(tmp_path)
    (parts / "talking_rewards.py").write_text(TALKING_REWARDS, encoding="utf-8")
    (parts / "model" / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    talks = [
        [{"role": "system", "content": word}, *({"role": "user", "content": f"{word} {i}"} for i in range(count))]
        for word in "abcdefghijkl"
        for count in (1, 2, 3)
    ]
    lines = "".join(format_line({"messages": talk}) + "\n" for talk in talks)
    (parts / "talks.jsonl").write_text(lines, encoding="utf-8")
    name = "talking_rewards:turns"
    chosen = {"prompts__name": str(parts / "talks.jsonl"), "reward__name": name, "reward__judge": name}
    settings = tiny_run(parts, "ppo", update__steps=3, **chosen)
    folder = running.execute(settings, tmp_path / "results").folder
    kept = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert all(line["messages"] in talks and line["prompt"].startswith("System: ") for line in kept)
    run = runs.read(folder)
    rescore(folder, name)
    np.testing.assert_array_equal(judged_by(run, name).column("eval/judge"), run.column("eval/judge"))
    found = rescored.read(folder, name)
    for line in kept:
        if line["split"] == "heldout":
            assert found.heldout[line["step"]][line["row"]] == line["judge"]


@pytest.mark.parametrize(
    ("messages", "fault"), [("text", "line 1 is damaged"), ([{"role": "user"}], "line 1, message 1")]
)
def test_a_damaged_conversation_is_named(messages: object, fault: str, rewards: Path, tmp_path: Path) -> None:
    folder = made(tmp_path, "ppo", 0, FULL)
    path = folder / "samples.jsonl"
    first, *others = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join([format_line({**json.loads(first), "messages": messages}) + "\n", *others]), "utf-8")
    with pytest.raises(BadResource, match=fault):
        read_replies(path)


def test_the_embedded_judge_scores_as_it_does_in_a_run(tmp_path: Path) -> None:
    folder = made(tmp_path, "ppo", 0, FULL)
    rescore(folder, "embedded-judge", device="cpu")
    with quiet_libraries():
        judge = load_reward("embedded-judge", torch.device("cpu"))
    direct = judge.score([f"p{row}" for row in range(4)], ["y" * (row + 2) for row in range(4)]).tolist()
    run = judged_by(runs.read(folder), "embedded-judge")
    assert run.column("eval/judge")[2] == fmean(direct)
