"""Sample the policy's replies to left-padded prompts, with one uniform random number per token."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from safebench.models.policy import LastStates, Policy
from safebench.models.seeding import permutation

_Thing = TypeVar("_Thing")
_CONTEXT = 8
"""Number of a prompt's last tokens that are decoded with its reply."""
PROBABILITIES = 2**21
"""Maximum number of probabilities per chunk of rows in sampling, unless a row has more: 16 MiB in double precision."""


@dataclass(frozen=True)
class Rollout:
    """Prompts and the replies sampled for them. B rows, P prompt positions, R reply positions."""

    prompts: list[str]
    replies: list[str]
    """As returned by ``reply_texts``: without a chat template they begin with what separates them from the prompt."""
    ids: Tensor
    """[B, P + R]: prompts padded on the left, replies on the right."""
    attention: Tensor
    """[B, P + R]: 1 on real tokens."""
    mask: Tensor
    """[B, R]: true on reply tokens, the end token included."""
    ended: Tensor
    """[B]: true where the reply ends with an end token."""
    truncated: int
    """Number of prompts that lost tokens on the left."""
    whole: bool = False
    """Whether groups of rows keep all reply positions of the batch, for algorithms that read the padding."""
    replicate: int = 0
    """Order of the groups, and of the rows in each: 0 is by length; each number from 1 on is another fixed order."""

    @property
    def tokens(self) -> Tensor:
        """The reply ids, [B, R]."""
        return self.ids[:, -self.mask.shape[1] :]

    def padded(self, pad: int) -> Rollout:
        """Return the rows with padding identified by the id ``pad``, cut to the longest reply, with ``whole`` true.

        This follows SAFE's released code: tokens with the id ``pad`` are neither attended to nor trained on, including
        the end token if it has the same id.
        """
        unused = self.mask.shape[1] - int(self.mask.sum(-1).max())
        ids = self.ids[:, : self.ids.shape[1] - unused]
        mask = self.mask[:, : self.mask.shape[1] - unused]
        real = ids != pad
        attention = real.to(self.attention.dtype)
        return replace(self, ids=ids, attention=attention, mask=real[:, -mask.shape[1] :], whole=True)

    def groups(self, size: int | None, rows: list[int] | None = None) -> list[list[int]]:
        """Return ``rows`` (all if None) in groups of at most ``size`` rows of similar length.

        Rows of one group pass through the model at once, cut to the longest of them. Similar lengths need less
        padding. A replicate has the same groups in another order, and the rows of each group in another order, so that
        sums over them round differently.
        """
        lengths = self.attention.sum(-1).tolist()
        order = sorted(range(len(lengths)) if rows is None else rows, key=lambda row: (lengths[row], row))
        groups = [order[i : i + (size or len(order))] for i in range(0, len(order), size or max(1, len(order)))]
        return [self._reordered(groups[i]) for i in self._reordered(list(range(len(groups))))]

    def _reordered(self, things: list[_Thing]) -> list[_Thing]:
        if not self.replicate:
            return things
        return [things[i] for i in permutation(len(things), "replicate", self.replicate)]

    def cut(self, rows: list[int]) -> Cut:
        """Return the rows without the columns that are padding in all of them."""
        replies = self.mask.shape[1]
        attention, mask = self.attention[rows], self.mask[rows]
        start = int(attention[:, :-replies].any(0).int().argmax()) if self.ids.shape[1] > replies else 0
        kept = replies if self.whole else min(replies, int(mask.sum(-1).max()) + 1)
        end = self.ids.shape[1] - replies + kept
        return Cut(self.ids[rows, start:end], attention[:, start:end], mask[:, :kept])


@dataclass(frozen=True)
class Cut:
    """Some rows of a rollout, with R' <= R reply positions: up to the one after the longest reply."""

    ids: Tensor
    attention: Tensor
    mask: Tensor

    @property
    def tokens(self) -> Tensor:
        """The reply ids, [b, R']."""
        return self.ids[:, -self.mask.shape[1] :]


@dataclass(frozen=True)
class Encoded:
    """Token ids of a batch of prompts, padded on the left."""

    texts: list[str]
    ids: Tensor
    attention: Tensor
    truncated: int


def encode(texts: list[str], tokens: list[list[int]], limit: int, pad: int, device: torch.device) -> Encoded:
    """Pad prompts on the left to the longest of them; prompts longer than ``limit`` lose their beginning."""
    kept = [t[-limit:] for t in tokens]
    width = max(map(len, kept))
    ids = torch.tensor([[pad] * (width - len(t)) + t for t in kept], device=device)
    attention = torch.tensor([[0] * (width - len(t)) + [1] * len(t) for t in kept], device=device)
    return Encoded(texts, ids, attention, sum(len(t) > limit for t in tokens))


@torch.no_grad()
def sample(policy: Policy, prompts: Encoded, noise: Tensor, temperature: float, chunk: int | None = None) -> Rollout:
    """Sample a reply for each prompt.

    Token t of row i is the inverse of the cumulative distribution at ``noise[i, t]`` (float64 [B, R], in
    [0, 1)). Sampling stops at an end token or after R tokens. ``chunk`` rows pass through the model at once.
    """
    rows = len(prompts.texts)
    size = chunk or rows
    pieces = [
        _sample_rows(
            policy, prompts.ids[i : i + size], prompts.attention[i : i + size], noise[i : i + size], temperature
        )
        for i in range(0, rows, size)
    ]
    pad = int(policy.tokenizer.pad_token_id)
    # One position past the longest reply, if there is room: the score of a reply is placed there.
    width = min(max(piece.shape[1] for piece in pieces) + 1, noise.shape[1])
    tokens = torch.cat([torch.nn.functional.pad(piece, (0, width - piece.shape[1]), value=-1) for piece in pieces])
    mask = tokens >= 0
    stops = torch.tensor(policy.stop_ids, dtype=torch.long, device=tokens.device)
    is_stop = torch.isin(tokens, stops) & mask
    ids = torch.cat([prompts.ids, tokens.where(mask, torch.tensor(pad, device=tokens.device))], dim=1)
    return Rollout(
        prompts=prompts.texts,
        replies=_texts(policy, tokens, mask & ~is_stop, prompts),
        ids=ids,
        attention=torch.cat([prompts.attention, mask.to(prompts.attention.dtype)], dim=1),
        mask=mask,
        ended=is_stop.any(-1),
        truncated=prompts.truncated,
    )


def _sample_rows(policy: Policy, ids: Tensor, attention: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """Return sampled ids [b, R'], -1 after a row's end; R' is the length of the longest reply."""
    limit = noise.shape[1]
    noise = noise.to(ids.device)
    stops = torch.tensor(policy.stop_ids, dtype=torch.long, device=ids.device)
    states = LastStates(policy.pass_through, ids, attention, cached=policy.path.decoding != "whole")
    running = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    sampled: list[Tensor] = []
    for t in range(limit):
        tokens = _draw(policy.output.few(states.now()), noise[:, t], temperature)
        sampled.append(tokens.where(running, torch.tensor(-1, device=ids.device)))
        running = running & ~torch.isin(tokens, stops)
        if not bool(running.any()):
            break
        states.append(tokens)
    return torch.stack(sampled, dim=1)


def _draw(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Return for each row the first token whose cumulative probability exceeds ``uniform`` [b].

    Rows are processed in chunks, and only one chunk is held in double precision. The chunk size does not change any
    number.
    """
    size = max(1, PROBABILITIES // logits.shape[-1])
    return torch.cat(
        [_draw_rows(logits[i : i + size], uniform[i : i + size], temperature) for i in range(0, len(logits), size)]
    )


def _draw_rows(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    cumulative = torch.softmax(logits.float() / temperature, dim=-1).double().cumsum(-1)
    drawn = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True).squeeze(-1)
    return drawn.clamp(max=logits.shape[-1] - 1)


def _texts(policy: Policy, tokens: Tensor, keep: Tensor, prompts: Encoded | None = None) -> list[str]:
    rows = [row[kept].tolist() for row, kept in zip(tokens, keep, strict=True)]
    if prompts is None:
        return reply_texts(policy.tokenizer, rows, [[]] * len(rows))
    before = [ids[real.bool()].tolist() for ids, real in zip(prompts.ids, prompts.attention, strict=True)]
    return reply_texts(policy.tokenizer, rows, before)


def reply_texts(tokenizer: PreTrainedTokenizerBase, replies: list[list[int]], prompts: list[list[int]]) -> list[str]:
    """Return the texts of replies, given their token ids and those of the prompts that they continue.

    With a chat template a reply is the content of a turn, without surrounding blanks. Without one, prompt and reply are
    one text, and the reply begins with what separates them: a blank, a line break or nothing.
    """
    alone = tokenizer.batch_decode(replies, skip_special_tokens=True)
    if tokenizer.chat_template is not None:
        return [text.strip() for text in alone]
    # Decoded after the prompt's last tokens, because many decoders drop the blank before a text's first word.
    last = [prompt[-_CONTEXT:] for prompt in prompts]
    heads = tokenizer.batch_decode(last, skip_special_tokens=True)
    wholes = tokenizer.batch_decode([a + b for a, b in zip(last, replies, strict=True)], skip_special_tokens=True)
    return [
        (whole[len(head) :] if whole.startswith(head) else text).rstrip()
        for text, head, whole in zip(alone, heads, wholes, strict=True)
    ]
