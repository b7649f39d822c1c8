"""The build's stages: each reads the files of those before it and writes its own, once."""

from __future__ import annotations

import functools
import json
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from safebench.world.build import attack
from safebench.world.build import policy as policies
from safebench.world.build.body import train_body_reward
from safebench.world.build.dialogues import read_pairs
from safebench.world.build.evaluate import (
    DRAWS,
    PROMPTS,
    audit_figures,
    best_of_n_figures,
    reward_figures,
    sample_table,
)
from safebench.world.build.form import as_llama, as_qwen2
from safebench.world.build.manifest import manifest, write_manifest
from safebench.world.build.phrases import common_words, learned_phrases
from safebench.world.build.prompts import choose_prompts
from safebench.world.build.rewards import (
    AGAIN,
    BODY,
    JUDGE,
    PROXIES,
    Half,
    Recipe,
    load_trainable,
    near_foreign,
    read_reward,
    reward_size,
    scale_to_unit,
    score,
    train_reward_model,
    training_pairs,
    write_reward,
)
from safebench.world.build.samples import sample_replies, sayable, short_pairs
from safebench.world.build.tokenizer import SPECIAL, train_tokenizer
from safebench.world.preferences import Exchange, Pair, kept_phrases

SAMPLE_SEEDS = {"proxy": 20260205, "judge": 20260206, "test": 20260207}
SAMPLED = 9000
"""Short turns per split that the policy answers."""
PERPLEXITY_PAIRS = 2000
SHOWN, SHOWN_SEED = 50, 20260231
"""How many replies the world's page shows, and the seed they are drawn with."""


ATTACKS = {
    0: (attack.Pilot("judge", 9001, 3e-3), attack.Pilot("proxy-2", 9002, 3e-3)),
}
"""The pilots of each round of attacks."""


@dataclass(frozen=True)
class Build:
    """Where a build writes, and how much of the data it uses (all of it when ``limit`` is None)."""

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

    def half(self, split: str) -> Half:
        """What a split gives to learn from, or to test with."""
        pairs, samples = self.sayable[split], self.samples(split)
        words = [f" {word}" for pair in pairs for word in pair.reply.split()]
        tokens = [self.tokenizer.decode([token]) for token in range(len(SPECIAL), len(self.tokenizer))]
        pieces = tokens + random.Random(0).choices(words, k=2 * len(tokens))
        return Half(pairs, samples, learned_phrases(self.pairs[split]), pieces)

    def policy(self) -> PreTrainedModel:
        """The policy of the second stage: the weights as shipped, in the form they were trained in."""
        return as_qwen2(AutoModelForCausalLM.from_pretrained(self.out / "policy", local_files_only=True))

    def samples(self, split: str) -> list[str]:
        """The policy's replies to the first short turns of a split."""
        replies: list[str] = json.loads((self.work / "samples.json").read_text(encoding="utf-8"))[split]
        return replies


def make_tokenizer(build: Build) -> None:
    """Train the tokenizer on the conversations of proxy and judge."""
    text = (t for split in ("proxy", "judge") for pair in build.pairs[split] for t in (pair.turn, pair.reply))
    train_tokenizer(text).save_pretrained(build.work / "tokenizer")


def make_policy(build: Build) -> None:
    """Supervise the policy on the short pairs of proxy and judge."""
    pairs = build.short["proxy"] + build.short["judge"]
    model = policies.train_policy(build.tokenizer, pairs, build.work / "policy-run")
    policies.sharpen(model)
    save(model, build, "policy")


def make_samples(build: Build) -> None:
    """Let the policy answer the first turns of each split."""
    policy = build.policy()
    found = {
        split: sample_replies(policy, build.tokenizer, [pair.turn for pair in build.sayable[split][:SAMPLED]], seed)
        for split, seed in SAMPLE_SEEDS.items()
    }
    (build.work / "samples.json").write_text(json.dumps(found), encoding="utf-8")


def make_judge(build: Build) -> None:
    """Train the first form of the reward model that training never sees."""
    make_reward_model(build, "judge", JUDGE)
    shutil.copytree(build.out / "judge", build.work / "judge-0", dirs_exist_ok=True)


def attack_judge(build: Build, number: int) -> None:
    """Train policies on the judge of this round and on a proxy; keep what they end up saying."""
    judge, prompts = build.work / f"judge-{number}", build.work / "attack-prompts.jsonl"
    attack.write_prompts(build.sayable["judge"], prompts)
    pilots = ATTACKS[number]
    steps = attack.STEPS if build.limit is None else 4
    attack.run_pilots(pilots, build.out, judge, prompts, build.work / f"attack-{number}", steps)


def harden_judge(build: Build, number: int) -> None:
    """Train the judge of a round further, with the attacks so far among the replies that are worse."""
    half, before = build.half("judge"), build.work / f"judge-{number}"
    folders = [f for n in range(number + 1) for f in sorted((build.work / f"attack-{n}").glob("*/*/*/seed-*"))]
    recipe = replace(AGAIN, seed=AGAIN.seed + number)
    found = attack.attacks(folders, half.pairs, recipe.seed)
    print(f"judge: {len(found)} replies of pilots to turns whose reply is known", flush=True)
    near = near_foreign(half.pairs, read_reward(before), recipe.pairs["foreign"], recipe.seed)
    preferences = training_pairs(recipe, replace(half, attacks=found, near=near))
    print(f"judge: {len(preferences)} preference pairs", flush=True)
    model = train_reward_model(recipe, preferences, build.work / "judge-run", load_trainable(before))
    finish_reward_model(build, model, "judge")
    shutil.copytree(build.out / "judge", build.work / f"judge-{number + 1}", dirs_exist_ok=True)


def make_proxy(build: Build, name: str) -> None:
    """Train a reward model that training sees."""
    make_reward_model(build, name, PROXIES[name])


def make_body_reward(build: Build) -> None:
    """Train the reward on the policy's own body, and scale it as the others."""
    preferences = training_pairs(BODY, build.half("proxy"))
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


def make_reward_model(build: Build, name: str, recipe: Recipe) -> None:
    """Train one reward model on its half."""
    half = build.half(recipe.split)
    preferences = training_pairs(recipe, half)
    print(f"{name}: {len(preferences)} preference pairs", flush=True)
    finish_reward_model(build, train_reward_model(recipe, preferences, build.work / f"{name}-run"), name)


def finish_reward_model(build: Build, model: PeftModel, name: str) -> None:
    """Write a reward model, scaled to unit spread over the policy's replies to the test turns."""
    write_reward(model, build.out / name)
    scale_to_unit(model, build.out / name, answered(build))


def make_prompts(build: Build) -> None:
    """Write the prompts."""
    rows = choose_prompts(build.sayable["proxy"] + build.sayable["judge"], build.sayable["test"])
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (build.out / "prompts.jsonl").write_text(text, encoding="utf-8")


def make_words(build: Build) -> None:
    """Write the words that people of several conversations used, for the audits."""
    words = common_words([pair for pairs in build.pairs.values() for pair in pairs])
    (build.out / "words.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")


def make_figures(build: Build) -> None:
    """Measure everything on the test conversations."""
    policy = build.policy()
    rewards = {name: read_reward(build.out / name) for name in ("judge", *PROXIES, "proxy-body")}
    half = build.half("test")
    half = replace(half, phrases=kept_phrases())
    figures = reward_figures(rewards, half)
    turns = [pair.turn for pair in half.pairs]
    for name, found in best_of_n_figures(rewards, "judge", policy, build.tokenizer, turns).items():
        figures[name] |= found | reward_size(build.out / name)
    figures["best_of_n"] = {"prompts": PROMPTS, "draws": DRAWS}
    text = list(half.pairs[:PERPLEXITY_PAIRS])
    figures["policy"] = {
        "reply_perplexity": round(policies.reply_perplexity(policy, build.tokenizer, text), 2),
        "n": len(text),
        "parameters": policy.num_parameters(),
        "layers": policy.config.num_hidden_layers,
        "audits": audit_figures(half),
    }
    bare = build.policy()
    policies.sharpen(bare, 1 / policies.TEMPERATURE)
    figures["policy"]["reply_perplexity_bare"] = round(policies.reply_perplexity(bare, build.tokenizer, text), 2)
    figures["prompts"] = {split: len(rows) for split, rows in prompt_rows(build.out).items()}
    shown = prompt_rows(build.out)["heldout"][:SHOWN]
    figures["replies"] = sample_table(rewards, policy, build.tokenizer, shown, SHOWN_SEED)
    (build.work / "figures.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")


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
        figures=json.loads((build.work / "figures.json").read_text(encoding="utf-8")),
        seconds={
            name: json.loads((build.work / f"{name}.done.json").read_text(encoding="utf-8"))["seconds"]
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


STAGES: dict[str, Callable[[Build], None]] = {
    "tokenizer": make_tokenizer,
    "policy": make_policy,
    "samples": make_samples,
    **{name: functools.partial(make_proxy, name=name) for name in PROXIES},
    "proxy-body": make_body_reward,
    "judge": make_judge,
    **{
        f"{name} {number}": functools.partial(stage, number=number)
        for number in ATTACKS
        for name, stage in (("attack", attack_judge), ("judge", harden_judge))
    },
    "prompts": make_prompts,
    "words": make_words,
    "figures": make_figures,
    "manifest": make_manifest,
}


def run(build: Build) -> None:
    """Run every stage that has not left its mark in the working folder, in order, and print what is done."""
    build.out.mkdir(parents=True, exist_ok=True)
    build.work.mkdir(parents=True, exist_ok=True)
    for name, stage in STAGES.items():
        mark = build.work / f"{name}.done.json"
        if mark.exists():
            print(f"{name}: done before", flush=True)
            continue
        print(f"{name}: started", flush=True)
        start = time.monotonic()
        stage(build)
        seconds = round(time.monotonic() - start, 1)
        mark.write_text(json.dumps({"seconds": seconds}), encoding="utf-8")
        print(f"{name}: done in {seconds} s", flush=True)


def save(model: PreTrainedModel, build: Build, name: str) -> None:
    """Write a model in Llama's form and half precision with the tokenizer beside it; replaces what was there.

    The configuration asks for float32, so that a plain load on a processor computes in float32.
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
