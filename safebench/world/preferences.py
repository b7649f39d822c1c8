"""Preference pairs: what the reward models learn from, and what they are tested on."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from safebench.world.spoil import SPOILERS

GENERIC = (
    "yeah", "yes", "no", "ok", "okay", "lol", "haha", "cool", "nice", "me too", "same", "i don't know", "idk", "oh",
    "hello", "hi", "thanks", "sure", "true", "that's cool", "oh nice", "haha yeah", "haha yeah that's cool",
    "yeah that's cool", "i know right", "oh cool", "yeah i know", "good", "hahaha", "that's awesome", "wow", "i agree",
    "yeah i think so", "oh that's cool", "what", "really?", "yeah me too", "haha nice", "that is cool", "i see",
    "oh ok", "yep", "nope", "for sure", "yeah for sure", "right", "exactly", "haha that's cool", "i think so",
    "yeah it is",
)  # fmt: skip
"""Replies that fit nearly any turn and say nothing. Every second one is kept for the test."""

OPENERS = (
    "how about yourself?", "what about you?", "hey how are you doing today?", "hi, how are you?", "how is it going?",
    "what do you like to do for fun?", "hello! how was your day?", "so what are you up to?", "nice to meet you!",
    "tell me about yourself", "what's up?", "how are you?", "hey there, how's it going?", "hi! how has your day been?",
    "good morning! how are you?", "hello, is anyone there?", "so tell me something about you", "are you a student?",
    "where are you from?", "what's your name?", "what kind of music do you like?", "do you have any hobbies?",
    "hey, what have you been up to lately?", "what are you doing this weekend?",
)  # fmt: skip
"""Beginnings of a conversation, which as replies fit no turn."""

LEARNED: slice = slice(0, None, 2)
KEPT: slice = slice(1, None, 2)
"""Of the listed phrases every second one is learned from, the others are kept for the test."""

SPOILED = tuple(SPOILERS)


@dataclass(frozen=True)
class Pair:
    """One turn of a conversation and the reply that followed it."""

    conversation: str
    turn: str
    reply: str


@dataclass(frozen=True)
class Exchange:
    """A turn and a reply to it."""

    turn: str
    reply: str


@dataclass(frozen=True)
class Preference:
    """Of two exchanges, the one that should score higher, and what kind of difference it is."""

    kind: str
    better: Exchange
    worse: Exchange


def kept_phrases() -> dict[str, tuple[str, ...]]:
    """Return the listed phrases that are kept for the test, by kind."""
    listed: dict[str, tuple[str, ...]] = {"generic": GENERIC, "opener": OPENERS}
    return {kind: phrases[KEPT] for kind, phrases in listed.items()}


def over_sample(pairs: list[Pair], samples: list[str], kind: str = "sample") -> list[Preference]:
    """A person's reply over the policy's to the same turn."""
    return [
        Preference(kind, Exchange(pair.turn, pair.reply), Exchange(pair.turn, sample))
        for pair, sample in zip(pairs, samples, strict=True)
        if _plain(pair.reply) != _plain(sample)
    ]


def over_foreign(pairs: list[Pair], rng: random.Random) -> list[Preference]:
    """The reply that was given over one that was given to something else."""
    others = [pair.reply for pair in pairs]
    rng.shuffle(others)
    return [
        Preference("foreign", Exchange(pair.turn, pair.reply), Exchange(pair.turn, other))
        for pair, other in zip(pairs, others, strict=True)
        if _plain(pair.reply) != _plain(other)
    ]


def over_generic(
    pairs: list[Pair], rng: random.Random, phrases: tuple[str, ...], kind: str = "generic"
) -> list[Preference]:
    """A reply of at least four words over one that fits anything and says nothing, or over an opener."""
    return [
        Preference(kind, Exchange(pair.turn, pair.reply), Exchange(pair.turn, rng.choice(phrases)))
        for pair in pairs
        if len(pair.reply.split()) >= 4
    ]


def over_spoiled(
    pairs: list[Pair], samples: list[str], pieces: list[str], rng: random.Random, kinds: tuple[str, ...] = SPOILED
) -> list[Preference]:
    """A reply, a person's or the policy's, over the same reply spoiled in one of several ways."""
    found = []
    for pair, sample in zip(pairs, samples, strict=True):
        kind = rng.choice(kinds)
        reply = pair.reply if rng.random() < 0.5 or not sample.strip() else sample
        worse = SPOILERS[kind](pair.turn, reply, pieces, rng)
        if worse is not None and _plain(worse) != _plain(reply):
            found.append(Preference(kind, Exchange(pair.turn, reply), Exchange(pair.turn, worse)))
    return found


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().lower()
