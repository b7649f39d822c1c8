"""Define the build's stages: each reads the files of those before it and writes its own, once."""

from __future__ import annotations

import functools
import json
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from safebench.models.libraries import quiet_libraries
from safebench.models.rewards import Reward
from safebench.scoring.pairs import Exchange, Pair, Preference, kept_phrases, universal
from tools.world import attack
from tools.world import policy as policies
from tools.world.body import train_body_reward
from tools.world.dialogues import read_pairs
from tools.world.evaluate import (
    DRAWS,
    PER_KIND,
    PROMPTS,
    audit_figures,
    best_of_n_figures,
    reward_figures,
    sample_table,
)
from tools.world.evaluate import SEED as EVALUATION_SEED
from tools.world.form import as_llama, as_qwen2
from tools.world.manifest import manifest, write_manifest
from tools.world.phrases import common_words, learned_phrases
from tools.world.prompts import choose_prompts
from tools.world.rewards import (
    AGAIN,
    AGAIN_RATE,
    BODY,
    JUDGE,
    PROXIES,
    SCOUT,
    TEACHER,
    Half,
    Student,
    load_trainable,
    near_foreign,
    read_reward,
    reward_size,
    scale_to_unit,
    score,
    shown_replies,
    train_reward_model,
    train_student,
    training_pairs,
    write_reward,
)
from tools.world.samples import sample_replies, sayable, short_pairs, short_replies
from tools.world.tokenizer import SPECIAL, train_tokenizer

SAMPLE_SEEDS = {"proxy": 20260205, "judge": 20260206, "test": 20260207}
SAMPLED, COOLED = 12000, 3000
"""Short turns per split that the policy answers, and how many of them it also answers at the lower temperature."""
COOL = 0.6
"""The lower temperature. Training with PPO sharpens a policy, so rewards must know such replies as well."""
PERPLEXITY_PAIRS = 2000
SHOWN, SHOWN_SEED = 50, 20260231
"""Number of replies that the world's page shows, and the seed that they are drawn with."""


TAUGHT = {"judge": JUDGE, "teacher": TEACHER}
"""Rewards that learn from preferences and are attacked. Only the judge is shipped."""
ROUNDS = {"judge": 2, "teacher": 2}
"""Rounds of attack and further training: the first attack is on the reward itself, the later ones on the scout."""
UNIVERSAL, TRIED = 300, 1500
"""Replies to anything that a search finds in each round, and short replies that it tries on their own."""
UNIVERSAL_OF_TRIAL = 3
"""Replies to anything that a trial build's search finds: the time grows with the square of this number."""
ATTACK_SEEDS = {"judge": 9001, "teacher": 9101, "held out": 9201}
AGREED, LEAST_R = 1000, 0.2
"""Replies on which a student is compared with its teacher, and the correlation above which it counts as trained."""
POLL = 0.2
"""Seconds between two checks of the running stages."""


@dataclass(frozen=True)
class Build:
    """Where a build writes, and how much of the data it uses (all of it if ``limit`` is None)."""

    out: Path
    work: Path
    limit: int | None = None

    @cached_property
    def pairs(self) -> dict[str, list[Pair]]:
        """The pairs of each split."""
        return {split: pairs[: self.limit] for split, pairs in read_pairs().items()}

    @cached_property
    def short(self) -> dict[str, list[Pair]]:
        """The pairs of each split that fit the world's lengths."""
        return {split: short_pairs(self.tokenizer, pairs) for split, pairs in self.pairs.items()}

    @cached_property
    def tokenizer(self) -> PreTrainedModel:
        """The tokenizer of the first stage."""
        return AutoTokenizer.from_pretrained(self.work / "tokenizer", local_files_only=True)

    @cached_property
    def sayable(self) -> dict[str, list[Pair]]:
        """The short pairs of each split whose reply the policy could have given."""
        return {split: sayable(self.tokenizer, pairs) for split, pairs in self.short.items()}

    def few(self, count: int) -> int:
        """Return how many of ``count`` a trial build makes: of 300 pairs, at most 30."""
        return count if self.limit is None else min(count, max(2, self.limit // 10))

    def few_of(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Return counts by kind, reduced in a trial build."""
        return {kind: self.few(count) for kind, count in counts.items()}

    def half(self, split: str) -> Half:
        """Return the material of a split, for training or for tests."""
        pairs, samples, cooled = self.sayable[split], self.samples(split), self.samples(f"{split}, cooled")
        words = [f" {word}" for pair in pairs for word in pair.reply.split()]
        tokens = [self.tokenizer.decode([token]) for token in range(len(SPECIAL), len(self.tokenizer))]
        pieces = tokens + random.Random(0).choices(words, k=2 * len(tokens))
        return Half(pairs, samples, learned_phrases(self.pairs[split]), pieces, cooled)

    def policy(self) -> PreTrainedModel:
        """Return the policy of the second stage: the weights as shipped, in the form they were trained in."""
        return as_qwen2(AutoModelForCausalLM.from_pretrained(self.out / "policy", local_files_only=True))

    def samples(self, name: str) -> list[str]:
        """Return the policy's replies to a split's first short turns; for "…, cooled", at the lower temperature."""
        replies: list[str] = json.loads((self.work / "samples.json").read_text(encoding="utf-8"))[name]
        return replies


def make_tokenizer(build: Build) -> None:
    """Train the tokenizer on the conversations of proxy and judge."""
    text = (t for split in ("proxy", "judge") for pair in build.pairs[split] for t in (pair.turn, pair.reply))
    train_tokenizer(text).save_pretrained(build.work / "tokenizer")


def make_policy(build: Build) -> None:
    """Train the policy with supervision on the pairs of proxy and judge whose reply is short."""
    pairs = short_replies(build.tokenizer, build.pairs["proxy"] + build.pairs["judge"])
    model = policies.train_policy(build.tokenizer, pairs, build.work / "policy-run")
    save(model, build, "policy")


def make_samples(build: Build) -> None:
    """Write the policy's replies to the first turns of each split."""
    policy, found = build.policy(), {}
    for split, seed in SAMPLE_SEEDS.items():
        turns = [pair.turn for pair in build.sayable[split][:SAMPLED]]
        found[split] = sample_replies(policy, build.tokenizer, turns, seed)
        found[f"{split}, cooled"] = sample_replies(policy, build.tokenizer, turns[:COOLED], seed + 10, COOL)
    (build.work / "samples.json").write_text(json.dumps(found), encoding="utf-8")


def make_taught(build: Build, name: str) -> None:
    """Train the first version of a reward that learns from preferences."""
    recipe = replace(TAUGHT[name], pairs=build.few_of(TAUGHT[name].pairs))
    preferences = training_pairs(recipe, build.half(recipe.split))
    print(f"{name}: {len(preferences)} preference pairs", flush=True)
    model = train_reward_model(recipe, preferences, build.work / f"{name}-run")
    finish_reward_model(build, model, reward_folder(build, name, 0))


def reward_folder(build: Build, name: str, number: int) -> Path:
    """Return a reward's folder after ``number`` rounds of attack; only the judge's last is among the shipped files."""
    shipped = name == "judge" and number == ROUNDS[name]
    return build.out / name if shipped else build.work / f"{name}-{number}"


def attack_taught(build: Build, name: str, number: int) -> None:
    """Train a policy on a reward and the turns of its half, for round ``number``; keep the policy's late replies."""
    reward = reward_folder(build, name, 0) if number == 1 else build.work / "scout"
    pairs = build.sayable[TAUGHT[name].split]
    run_attack(build, reward, ATTACK_SEEDS[name] + number, pairs, f"{name} attack {number}")


def run_attack(build: Build, reward: Path, seed: int, pairs: list[Pair], name: str) -> None:
    """Train a policy on a reward and the turns of ``pairs``."""
    prompts = build.work / f"{name}.jsonl"
    attack.write_prompts(pairs, prompts)
    # A trial has too few turns for whole batches.
    steps, batch = (attack.STEPS, None) if build.limit is None else (4, 16)
    attack.run_pilot(reward, seed, build.out / "policy", prompts, build.work / name, steps, batch)


def attacked(folders: list[Path], pairs: Sequence[Pair], seed: int) -> list[Preference]:
    """Return preferences for people's replies over the late replies of the pilots in ``folders``."""
    return attack.attacks(pilots(folders), pairs, seed)


def pilots(folders: list[Path]) -> list[Path]:
    """Return the folders of the runs in ``folders``."""
    return [run for folder in folders for run in sorted(folder.glob("*/*/seed-*"))]


def harden_taught(build: Build, name: str, number: int) -> None:
    """Train a reward further, with the attacks of ``number`` rounds among the worse replies."""
    recipe = TAUGHT[name]
    recipe = replace(recipe, seed=recipe.seed + 100 + number, pairs=build.few_of(AGAIN), learning_rate=AGAIN_RATE)
    half, before = build.half(recipe.split), reward_folder(build, name, number - 1)
    found = attacked([build.work / f"{name} attack {n}" for n in range(1, number + 1)], half.pairs, recipe.seed)
    print(f"{name}: {len(found)} replies of pilots to turns whose reply is known", flush=True)
    reward = read_reward(before)
    near = near_foreign(half.pairs, reward, recipe.pairs["foreign"], recipe.seed)
    to_anything = universal(
        half.pairs,
        lambda turns, replies: score(reward, list(map(Exchange, turns, replies))),
        UNIVERSAL if build.limit is None else UNIVERSAL_OF_TRIAL,
        build.few(TRIED),
        recipe.seed,
    )
    phrases = {**half.phrases, "universal": to_anything}
    print(f"{name}: liked whatever the turn: {'; '.join(to_anything[:9])}", flush=True)
    preferences = training_pairs(recipe, replace(half, attacks=found, near=near, phrases=phrases))
    print(f"{name}: {len(preferences)} preference pairs", flush=True)
    model = train_reward_model(recipe, preferences, build.work / f"{name}-run", load_trainable(before))
    finish_reward_model(build, model, reward_folder(build, name, number))


def labelled(build: Build, teacher: Path, exchanges: list[Exchange], name: str) -> None:
    """Score the exchanges that students learn from with a teacher, and write the scores."""
    scores = score(read_reward(teacher), exchanges).tolist()
    rows = [[exchange.turn, exchange.reply, found] for exchange, found in zip(exchanges, scores, strict=True)]
    (build.work / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")


def student(build: Build, recipe: Student, name: str, labels: str, teacher: Path) -> PreTrainedModel:
    """Return a reward fitted to a teacher's scores."""
    rows = json.loads((build.work / f"{labels}.json").read_text(encoding="utf-8"))
    exchanges, scores = [Exchange(turn, reply) for turn, reply, _ in rows], torch.tensor([row[2] for row in rows])
    return train_student(recipe, exchanges, scores, build.work / f"{name}-run", teacher)


def see_that_it_learned(build: Build, name: str, folder: Path, labels: str) -> None:
    """Print the correlation of a student with its teacher over replies that it was trained on.

    Raises RuntimeError if the correlation is too low, except in a trial build, which has too little to learn from.
    """
    rows = json.loads((build.work / f"{labels}.json").read_text(encoding="utf-8"))
    rows = random.Random(0).sample(rows, min(AGREED, len(rows)))
    found = score(read_reward(folder), [Exchange(turn, reply) for turn, reply, _ in rows])
    r = float(torch.corrcoef(torch.stack([found, torch.tensor([row[2] for row in rows])]))[0, 1])
    print(f"{name}: r = {r:.2f} with its teacher over {len(rows)} replies", flush=True)
    if build.limit is None and not r > LEAST_R:
        raise RuntimeError(f"{name} learned nearly nothing (r = {r:.2f} with its teacher): try another learning rate")


def make_scout(build: Build) -> None:
    """Fit a quickly made proxy to the teacher after its first round, for the pilots of the next round."""
    exchanges = shown_replies(replace(SCOUT, replies=build.few_of(SCOUT.replies)), build.half("proxy"))
    teacher = reward_folder(build, "teacher", 1)
    labelled(build, teacher, exchanges, "scout labels")
    finish_reward_model(build, student(build, SCOUT, "scout", "scout labels", teacher), build.work / "scout")
    see_that_it_learned(build, "scout", build.work / "scout", "scout labels")


def make_labels(build: Build) -> None:
    """Score the replies that the proxies learn from, those of the teacher's own pilots included, with the teacher."""
    rounds = ROUNDS["teacher"]
    said = attack.said(pilots([build.work / f"teacher attack {n}" for n in range(1, rounds + 1)]))
    recipe = next(iter(PROXIES.values()))
    exchanges = shown_replies(replace(recipe, replies=build.few_of(recipe.replies)), build.half("proxy")) + said
    print(f"labels: {len(exchanges)} replies, {len(said)} of them by pilots", flush=True)
    labelled(build, reward_folder(build, "teacher", rounds), exchanges, "labels")


def make_proxy(build: Build, name: str) -> None:
    """Fit a proxy, a reward that training sees, to the teacher's scores."""
    teacher = reward_folder(build, "teacher", ROUNDS["teacher"])
    finish_reward_model(build, student(build, PROXIES[name], name, "labels", teacher), build.out / name)
    see_that_it_learned(build, name, build.out / name, "labels")


def attack_held_out(build: Build) -> None:
    """Train a policy on the proxy, on turns of the test, which no reward has seen."""
    run_attack(build, build.out / "proxy", ATTACK_SEEDS["held out"], build.sayable["test"], "held-out attack")


def make_body_reward(build: Build) -> None:
    """Train the reward on the policy's own body, and scale it like the others."""
    preferences = training_pairs(replace(BODY, pairs=build.few_of(BODY.pairs)), build.half("proxy"))
    model = train_body_reward(BODY, build.policy(), build.tokenizer, preferences, build.work / "body-run")
    save(model, build, "proxy-body")
    scores = score(read_reward(build.out / "proxy-body"), answered(build))
    with torch.no_grad():
        model.score.weight /= scores.std()
    save(model, build, "proxy-body")


def answered(build: Build) -> list[Exchange]:
    """Return the policy's replies to the test turns."""
    found = zip(build.sayable["test"], build.samples("test"), strict=False)
    return [Exchange(pair.turn, reply) for pair, reply in found]


def finish_reward_model(build: Build, model: PreTrainedModel, folder: Path) -> None:
    """Write a reward model, scaled to unit spread over the policy's replies to the test turns."""
    write_reward(model, folder)
    scale_to_unit(model, folder, answered(build))


def make_prompts(build: Build) -> None:
    """Write the prompts."""
    train, learned = ([*pairs["proxy"], *pairs["judge"]] for pairs in (build.sayable, build.pairs))
    rows = choose_prompts(train, build.sayable["test"], learned)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (build.out / "prompts.jsonl").write_text(text, encoding="utf-8")


def make_words(build: Build) -> None:
    """Write the words that people of several conversations used, for the audits."""
    words = common_words([pair for pairs in build.pairs.values() for pair in pairs])
    (build.out / "words.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")


def measured_rewards(build: Build) -> dict[str, Reward]:
    """Return the rewards for which figures are measured."""
    return {name: read_reward(build.out / name) for name in ("judge", *PROXIES, "proxy-body")}


def make_pair_figures(build: Build) -> None:
    """Measure on the test conversations how the rewards order pairs."""
    half = build.half("test")
    found = attacked([build.work / "held-out attack"], half.pairs, EVALUATION_SEED)
    half = replace(half, phrases=kept_phrases(), attacks=found)
    figures = reward_figures(measured_rewards(build), half, build.few(PER_KIND))
    (build.work / "pair figures.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")


def make_draw_figures(build: Build) -> None:
    """Measure on the test conversations the policy's replies, and which of them the rewards choose as the best."""
    policy, rewards, half = build.policy(), measured_rewards(build), build.half("test")
    turns = [pair.turn for pair in half.pairs][: build.few(PROMPTS)]
    figures: dict[str, Any] = best_of_n_figures(rewards, "judge", policy, build.tokenizer, turns)
    figures["best_of_n"] = {"prompts": len(turns), "draws": DRAWS}
    text = list(half.pairs[:PERPLEXITY_PAIRS])
    figures["policy"] = {
        "reply_perplexity": round(policies.reply_perplexity(policy, build.tokenizer, text), 2),
        "n": len(text),
        "parameters": policy.num_parameters(),
        "layers": policy.config.num_hidden_layers,
        "audits": audit_figures(half),
    }
    shown = prompt_rows(build.out)["heldout"][:SHOWN]
    figures["replies"] = sample_table(rewards, policy, build.tokenizer, shown, SHOWN_SEED)
    (build.work / "draw figures.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")


def figures(build: Build) -> dict[str, Any]:
    """Return what was measured on the test conversations."""
    pairs: dict[str, Any]
    drawn: dict[str, Any]
    pairs, drawn = (
        json.loads((build.work / f"{name} figures.json").read_text(encoding="utf-8")) for name in ("pair", "draw")
    )
    for name, found in pairs.items():
        drawn[name] = found | drawn[name] | reward_size(build.out / name)
    drawn["prompts"] = {split: len(rows) for split, rows in prompt_rows(build.out).items()}
    return drawn


def make_manifest(build: Build) -> None:
    """Write the manifest."""
    content = manifest(
        build.out,
        splits={
            split: {
                "conversations": len({pair.conversation for pair in pairs}),
                "pairs": len(pairs),
                "short": len(build.short[split]),
                "sayable": len(build.sayable[split]),
            }
            for split, pairs in build.pairs.items()
        },
        seeds={f"samples of {split}": seed for split, seed in SAMPLE_SEEDS.items()} | {"replies shown": SHOWN_SEED},
        threads=torch.get_num_threads(),
        figures=figures(build),
        seconds={
            name: json.loads(mark(build, name).read_text(encoding="utf-8"))["seconds"]
            for name in STAGES
            if name != "manifest"
        },
    )
    write_manifest(build.out, content)


def prompt_rows(folder: Path) -> dict[str, list[dict[str, str]]]:
    """Return the rows of prompts.jsonl by split."""
    rows: dict[str, list[dict[str, str]]] = {"train": [], "heldout": []}
    for line in (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows[row["split"]].append(row)
    return rows


@dataclass(frozen=True)
class Stage:
    """One stage: its function, and the stages whose files it reads."""

    make: Callable[[Build], None]
    after: tuple[str, ...]


def _taught(name: str) -> dict[str, Stage]:
    found = {name: Stage(functools.partial(make_taught, name=name), ("samples",))}
    before = name
    for n in range(1, ROUNDS[name] + 1):
        attacking, hardening = f"{name} attack {n}", f"{name} again {n}"
        needs = (before,) if n == 1 else (before, "scout")
        found[attacking] = Stage(functools.partial(attack_taught, name=name, number=n), needs)
        found[hardening] = Stage(functools.partial(harden_taught, name=name, number=n), (attacking,))
        before = hardening
        if (name, n) == ("teacher", 1):
            found["scout"] = Stage(make_scout, (hardening,))
    return found


_MEASURED = (f"judge again {ROUNDS['judge']}", *PROXIES, "proxy-body")
STAGES: dict[str, Stage] = {
    "tokenizer": Stage(make_tokenizer, ()),
    "prompts": Stage(make_prompts, ("tokenizer",)),
    "words": Stage(make_words, ()),
    "policy": Stage(make_policy, ("tokenizer",)),
    "samples": Stage(make_samples, ("policy",)),
    **_taught("teacher"),
    **_taught("judge"),
    "labels": Stage(make_labels, (f"teacher again {ROUNDS['teacher']}",)),
    **{name: Stage(functools.partial(make_proxy, name=name), ("labels",)) for name in PROXIES},
    "proxy-body": Stage(make_body_reward, ("samples",)),
    "held-out attack": Stage(attack_held_out, ("proxy",)),
    "pair figures": Stage(make_pair_figures, ("held-out attack", *_MEASURED)),
    "draw figures": Stage(make_draw_figures, (*_MEASURED, "prompts", "words")),
    "manifest": Stage(make_manifest, ("pair figures", "draw figures")),
}
"""Stages by name, each after those that it needs."""


def mark(build: Build, name: str) -> Path:
    """Return the file that records that a stage is done, and its time in seconds."""
    return build.work / f"{name}.done.json"


def run_stage(build: Build, name: str) -> None:
    """Run one stage and record that it is done."""
    for folder in (build.out, build.work):
        folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with quiet_libraries():
        STAGES[name].make(build)
    seconds = round(time.monotonic() - start, 1)
    mark(build, name).write_text(json.dumps({"seconds": seconds}), encoding="utf-8")
    print(f"{name}: done in {seconds} s", flush=True)


def run(build: Build, start: Callable[[str], subprocess.Popen[bytes]], at_once: int) -> None:
    """Run every stage that is not recorded as done, ``at_once`` in parallel, each after those that it needs.

    ``start`` starts a process that runs a stage. If one fails, CalledProcessError is raised once the others have ended.
    """
    done = [name for name in STAGES if mark(build, name).exists()]
    for name in done:
        print(f"{name}: done before", flush=True)
    running: dict[str, subprocess.Popen[bytes]] = {}
    failed: subprocess.CalledProcessError | None = None
    while running or (failed is None and len(done) < len(STAGES)):
        ready = [n for n in STAGES if n not in done and n not in running and set(STAGES[n].after) <= set(done)]
        for name in ready[: 0 if failed else at_once - len(running)]:
            print(f"{name}: started", flush=True)
            running[name] = start(name)
        for name, process in list(running.items()):
            code = process.poll()
            if code is not None:
                del running[name]
                if code:
                    failed = subprocess.CalledProcessError(code, process.args)
                else:
                    done.append(name)
        time.sleep(POLL)
    if failed is not None:
        raise failed


def save(model: PreTrainedModel, build: Build, name: str) -> None:
    """Write a model in Llama's form and half precision, with the tokenizer beside it; replace what was there.

    The configuration asks for float32, so that a plain load on a CPU computes in float32.
    """
    folder = build.out / name
    shutil.rmtree(folder, ignore_errors=True)
    as_llama(model).to(torch.float16).save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for file in sorted((build.work / "tokenizer").iterdir()):
        shutil.copy(file, folder / file.name)
    for file in folder.iterdir():
        file.chmod(0o644)
