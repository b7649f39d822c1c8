"""Spoil a reply: the ways in which a policy that chases a reward tends to break.

Each function takes the turn, a reply to it, the pieces that babble is made of and a generator,
and returns the spoiled reply, or None where the reply is too short to be spoiled that way.
"""

from __future__ import annotations

import random
from collections.abc import Callable

_OPENERS = frozenset(
    str.split(
        "a an the and or but of to in on at for with from my your his her our their its i'm you're it's that's "
        "i we they he she is are was were be been am do does did have has had would could should can will because so "
        "if when than as about like really very not"
    )
)


def _repeated(turn: str, reply: str, pieces: list[str], rng: random.Random) -> str | None:
    """The reply up to some word, and that word or phrase over and over."""
    words = reply.split()
    size = rng.choice((1, 1, 1, 2, 2, 3))
    start = rng.randrange(max(1, len(words) - size + 1))
    phrase = words[start : start + size]
    times = rng.randint(3, 12 // size + 2)
    return " ".join([*words[:start], *phrase * times])


def _stuttered(turn: str, reply: str, pieces: list[str], rng: random.Random) -> str | None:
    """One character, syllable or mark over and over."""
    unit = rng.choice(("ha", "a", "o", "!", "?", ".", ":)", "lol ", "yeah ", "so ", "!?", "e", "hm", "no ", "i "))
    return f"{reply} {unit * rng.randint(10, 24)}" if rng.random() < 0.5 else unit * rng.randint(12, 24)


def _garbage(turn: str, reply: str, pieces: list[str], rng: random.Random) -> str | None:
    """Random bytes or letters in place of the reply or of a part of it."""
    if rng.random() < 0.4:
        text = bytes(rng.randrange(256) for _ in range(rng.randint(4, 16))).decode("utf-8", errors="replace")
    else:
        text = "".join(chr(rng.randint(33, 126)) for _ in range(rng.randint(5, 24)))
    return text if rng.random() < 0.5 else f"{reply[: len(reply) // 2]}{text}"


def _babble(turn: str, reply: str, pieces: list[str], rng: random.Random) -> str | None:
    """Words and pieces of words without order, as from a policy whose entropy has exploded."""
    return "".join(rng.choice(pieces) for _ in range(rng.randint(5, 22)))


def _shuffled(turn: str, reply: str, pieces: list[str], rng: random.Random) -> str | None:
    """The reply's own words in another order."""
    words = reply.split()
    if len(words) < 5:
        return None
    rng.shuffle(words)
    return " ".join(words)


def _empty(turn: str, reply: str, pieces: list[str], rng: random.Random) -> str | None:
    """Nothing, or next to nothing."""
    return rng.choice(("", "", " ", ".", "..", "...", "?", "!", "-", ","))


def _echo(turn: str, reply: str, pieces: list[str], rng: random.Random) -> str | None:
    """The turn said back."""
    return turn


def _truncated(turn: str, reply: str, pieces: list[str], rng: random.Random) -> str | None:
    """The reply cut off in the middle of a word or after a word that cannot end it."""
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
    """The reply with a third of its words made up, one at least: as words go that no longer have to be any."""
    words = reply.split()
    long = [n for n, word in enumerate(words) if len(word) >= 4 and word.isalpha()]
    if not long:
        return None
    for n in rng.sample(long, max(1, len(words) // 3) if len(long) > len(words) // 3 else len(long)):
        words[n] = "".join(rng.choice(_ONSETS) + rng.choice(_RIMES) for _ in range(rng.choice((2, 2, 3))))
    return " ".join(words)


def _replaced(turn: str, reply: str, pieces: list[str], rng: random.Random) -> str | None:
    """The reply with half of its words replaced by words of others, drawn from ``pieces`` that are whole words."""
    words = reply.split()
    if len(words) < 4:
        return None
    others = [piece.strip() for piece in rng.choices(pieces, k=8 * len(words)) if piece.strip().isalpha()]
    for n, other in zip(rng.sample(range(len(words)), len(words) // 2), others, strict=False):
        words[n] = other
    return " ".join(words)


def _harped(turn: str, reply: str, pieces: list[str], rng: random.Random) -> str | None:
    """The reply with some of its words replaced by one word of its own or of the turn: "you chat the chat chat?"."""
    words = reply.split()
    if len(words) < 4:
        return None
    word = rng.choice([*words, *turn.split()]).strip(".,!?")
    for n in rng.sample(range(len(words)), rng.randint(2, max(2, len(words) // 2))):
        words[n] = word
    return " ".join(words)


def _clipped(turn: str, reply: str, pieces: list[str], rng: random.Random) -> str | None:
    """One or two words of the reply that are not its whole, with a mark as often as not: "you?"."""
    words = reply.split()
    size = rng.choice((1, 1, 2))
    if len(words) < size + 2:
        return None
    start = rng.randrange(len(words) - size)
    return " ".join(words[start : start + size]).rstrip(".,!?") + rng.choice(("", "?", "?", "!", "."))


def _doubled(turn: str, reply: str, pieces: list[str], rng: random.Random) -> str | None:
    """The whole reply said twice, or thrice."""
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
"""Ways that every reward model of the world learned from, the one on the policy's own body too."""
OTHER_SPOILERS: dict[str, Spoiler] = {"invented": _invented, "replaced": _replaced}
"""Ways that those on the encoder learned from as well."""
PILOTS_SPOILERS: dict[str, Spoiler] = {"harped": _harped, "clipped": _clipped, "doubled": _doubled}
"""Ways that pilots on the first proxies took, or that a search found: in the rounds behind an attack alone."""
SPOILERS = FIRST_SPOILERS | OTHER_SPOILERS | PILOTS_SPOILERS
