"""Builds preference pairs to measure a reward: people's replies over spoiled, generic and other turns' replies.

Spoiling imitates how a policy that over-optimises a reward tends to fail. The universal search finds, without training,
replies that a reward scores highly for any turn.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch

_OPENERS = frozenset(
    str.split(
        "a an the and or but of to in on at for with from my your his her our their its i'm you're it's that's "
        "i we they he she is are was were be been am do does did have has had would could should can will because so "
        "if when than as about like really very not"
    )
)


def _repeated(turn: str, reply: str, pieces: list[str], rng: random.Random) -> str | None:
    """Return the reply up to some word, with that word or phrase repeated many times."""
    words = reply.split()
    size = rng.choice((1, 1, 1, 2, 2, 3))
    start = rng.randrange(max(1, len(words) - size + 1))
    phrase = words[start : start + size]
    times = rng.randint(3, 12 // size + 2)
    return " ".join([*words[:start], *phrase * times])


def _stuttered(turn: str, reply: str, pieces: list[str], rng: random.Random) -> str | None:
    """Return one character, syllable or mark repeated many times, alone or after the reply."""
    unit = rng.choice(("ha", "a", "o", "!", "?", ".", ":)", "lol ", "yeah ", "so ", "!?", "e", "hm", "no ", "i "))
    return f"{reply} {unit * rng.randint(10, 24)}" if rng.random() < 0.5 else unit * rng.randint(12, 24)


def _garbage(turn: str, reply: str, pieces: list[str], rng: random.Random) -> str | None:
    """Return random bytes or letters in place of the reply or of a part of it."""
    if rng.random() < 0.4:
        text = bytes(rng.randrange(256) for _ in range(rng.randint(4, 16))).decode("utf-8", errors="replace")
    else:
        text = "".join(chr(rng.randint(33, 126)) for _ in range(rng.randint(5, 24)))
    return text if rng.random() < 0.5 else f"{reply[: len(reply) // 2]}{text}"


def _babble(turn: str, reply: str, pieces: list[str], rng: random.Random) -> str | None:
    """Return words and pieces of words without order, as from a policy whose entropy has exploded."""
    return "".join(rng.choice(pieces) for _ in range(rng.randint(5, 22)))


def _shuffled(turn: str, reply: str, pieces: list[str], rng: random.Random) -> str | None:
    """Return the reply's own words in another order."""
    words = reply.split()
    if len(words) < 5:
        return None
    rng.shuffle(words)
    return " ".join(words)


def _empty(turn: str, reply: str, pieces: list[str], rng: random.Random) -> str | None:
    """Return an empty or nearly empty reply."""
    return rng.choice(("", "", " ", ".", "..", "...", "?", "!", "-", ","))


def _echo(turn: str, reply: str, pieces: list[str], rng: random.Random) -> str | None:
    """Return the turn as the reply to itself."""
    return turn


def _truncated(turn: str, reply: str, pieces: list[str], rng: random.Random) -> str | None:
    """Return the reply cut off in the middle of a word or after a word that cannot end it."""
    words = reply.split()
    cuts = [n for n in range(2, len(words)) if words[n - 1].lower() in _OPENERS]
    if cuts and rng.random() < 0.7:
        return " ".join(words[: rng.choice(cuts)])
    inside = [n for n in range(1, len(words)) if len(words[n]) >= 5]
    if not inside:
        return None
    last = rng.choice(inside)
    return " ".join([*words[:last], words[last][: rng.randint(1, len(words[last]) - 3)]])


def _invented(turn: str, reply: str, pieces: list[str], rng: random.Random) -> str | None:
    """Return the reply with a third of its words, at least one, made up; words then need not be real any more."""
    words = reply.split()
    long = [n for n, word in enumerate(words) if len(word) >= 4 and word.isalpha()]
    if not long:
        return None
    for n in rng.sample(long, max(1, len(words) // 3) if len(long) > len(words) // 3 else len(long)):
        words[n] = "".join(rng.choice(_ONSETS) + rng.choice(_RIMES) for _ in range(rng.choice((2, 2, 3))))
    return " ".join(words)


def _replaced(turn: str, reply: str, pieces: list[str], rng: random.Random) -> str | None:
    """Return the reply with half of its words replaced by others, drawn from the whole words in ``pieces``."""
    words = reply.split()
    if len(words) < 4:
        return None
    others = [piece.strip() for piece in rng.choices(pieces, k=8 * len(words)) if piece.strip().isalpha()]
    for n, other in zip(rng.sample(range(len(words)), len(words) // 2), others, strict=False):
        words[n] = other
    return " ".join(words)


def _harped(turn: str, reply: str, pieces: list[str], rng: random.Random) -> str | None:
    """Return the reply with some words replaced by one word from it or the turn: "you chat the chat chat?"."""
    words = reply.split()
    if len(words) < 4:
        return None
    word = rng.choice([*words, *turn.split()]).strip(".,!?")
    for n in rng.sample(range(len(words)), rng.randint(2, max(2, len(words) // 2))):
        words[n] = word
    return " ".join(words)


def _clipped(turn: str, reply: str, pieces: list[str], rng: random.Random) -> str | None:
    """Return one or two words of the reply, but not all of it, often with a mark: "you?"."""
    words = reply.split()
    size = rng.choice((1, 1, 2))
    if len(words) < size + 2:
        return None
    start = rng.randrange(len(words) - size)
    return " ".join(words[start : start + size]).rstrip(".,!?") + rng.choice(("", "?", "?", "!", "."))


def _doubled(turn: str, reply: str, pieces: list[str], rng: random.Random) -> str | None:
    """Return the whole reply two or three times."""
    return " ".join([reply.strip()] * rng.choice((2, 2, 2, 3)))


_ONSETS = ("b", "bl", "ch", "d", "dr", "f", "g", "gl", "h", "k", "l", "m", "n", "p", "pr", "r", "s", "st", "t", "v")
_RIMES = ("a", "an", "ard", "e", "ed", "el", "ent", "i", "ib", "ing", "o", "omb", "on", "or", "u", "uce", "um", "unt")

Spoiler = Callable[[str, str, list[str], random.Random], str | None]
FIRST_SPOILERS: dict[str, Spoiler] = {
    "repeated": _repeated,
    "stuttered": _stuttered,
    "garbage": _garbage,
    "babble": _babble,
    "shuffled": _shuffled,
    "empty": _empty,
    "echo": _echo,
    "truncated": _truncated,
}
"""Kinds of spoiling that every reward model of the world learned from, also the one on the policy's own body."""
OTHER_SPOILERS: dict[str, Spoiler] = {"invented": _invented, "replaced": _replaced}
"""Kinds that the reward models on the encoder learned from as well."""
PILOTS_SPOILERS: dict[str, Spoiler] = {"harped": _harped, "clipped": _clipped, "doubled": _doubled}
"""Kinds that pilots on the first proxies showed, or that a search found; used only in the rounds after an attack."""
SPOILERS = FIRST_SPOILERS | OTHER_SPOILERS | PILOTS_SPOILERS


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
"""Openings of a conversation; as replies they fit no turn."""

LEARNED: slice = slice(0, None, 2)
KEPT: slice = slice(1, None, 2)
"""Every second listed phrase is used for learning; the others are kept for the test."""

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
    """Two exchanges, of which ``better`` should score higher, and the kind of difference between them."""

    kind: str
    better: Exchange
    worse: Exchange


def kept_phrases() -> dict[str, tuple[str, ...]]:
    """Return the listed phrases that are kept for the test, by kind."""
    listed: dict[str, tuple[str, ...]] = {"generic": GENERIC, "opener": OPENERS}
    return {kind: phrases[KEPT] for kind, phrases in listed.items()}


def over_sample(pairs: list[Pair], samples: list[str], kind: str = "sample") -> list[Preference]:
    """Return preferences for a person's reply over the policy's reply to the same turn."""
    return [
        Preference(kind, Exchange(pair.turn, pair.reply), Exchange(pair.turn, sample))
        for pair, sample in zip(pairs, samples, strict=True)
        if _plain(pair.reply) != _plain(sample)
    ]


def over_foreign(pairs: list[Pair], rng: random.Random) -> list[Preference]:
    """Return preferences for the reply that was given over a reply that was given to another turn."""
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
    """Return preferences for a reply of at least four words over one that fits anything, or over an opener."""
    return [
        Preference(kind, Exchange(pair.turn, pair.reply), Exchange(pair.turn, rng.choice(phrases)))
        for pair in pairs
        if len(pair.reply.split()) >= 4
    ]


def over_spoiled(
    pairs: list[Pair], samples: list[str], pieces: list[str], rng: random.Random, kinds: tuple[str, ...] = SPOILED
) -> list[Preference]:
    """Return preferences for a person's or the policy's reply over the same reply, spoiled in one of several ways."""
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


WORDS = 5
"""Longest reply that is tried, in words."""
TURNS = (3, 12)
"""Number of turns that each candidate is scored on, and then each of the better candidates."""
BETTER = 2
"""Number of better candidates, as a multiple of the number of replies asked for."""
JOINED = 40
"""Number of best replies that are joined with each other, but at most ``JOINED_OF`` times the number asked for."""
JOINED_OF = 4
SHARE = 1 / 30
"""Largest share of the found replies that contain the same short reply, but at least one of them; without this limit
all of them would be variants of the best."""

Score = Callable[[list[str], list[str]], torch.Tensor]
"""Scores each reply to its turn, [B]."""


def universal(pairs: Sequence[Pair], score: Score, count: int, tried: int, seed: int) -> tuple[str, ...]:
    """Search for ``count`` replies with the highest mean score over turns of ``pairs``, and return them, best first.

    The candidates are ``tried`` short replies on their own, and the best of these joined in twos, also with themselves.
    Fewer than ``count`` replies are returned if fewer are different enough.
    """
    rng = random.Random(seed)
    turns = [pair.turn for pair in pairs]

    def ranked(candidates: Sequence[tuple[str, ...]], drawn: int) -> list[tuple[str, ...]]:
        asked = rng.choices(turns, k=drawn * len(candidates))
        replies = [" ".join(parts) for parts in candidates for _ in range(drawn)]
        means = score(asked, replies).view(-1, drawn).mean(-1)
        return [candidates[row] for row in means.argsort(descending=True, stable=True).tolist()]

    short = list(dict.fromkeys(pair.reply.strip() for pair in pairs if len(pair.reply.split()) <= WORDS))
    alone = ranked([(reply,) for reply in rng.sample(short, min(tried, len(short)))], TURNS[0])
    best = [parts[0] for parts in alone[: min(JOINED, JOINED_OF * count)]]
    twos = ranked(list(product(best, best)), TURNS[0])
    # A fixed number of each: otherwise twos would displace every reply that scores well on its own.
    found = ranked([*alone[: BETTER * count // 2], *twos[: BETTER * count]], TURNS[1])
    return _varied(found, count)


def _varied(found: Sequence[tuple[str, ...]], count: int) -> tuple[str, ...]:
    """Return the first ``count`` candidates, without those with a part that has been used often enough."""
    most, used = max(1, round(SHARE * count)), Counter[str]()
    kept: list[str] = []
    for parts in found:
        if len(kept) < count and all(used[part] < most for part in parts):
            used.update(set(parts))
            kept.append(" ".join(parts))
    return tuple(kept)
