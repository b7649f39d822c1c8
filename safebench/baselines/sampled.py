"""Another library's batch as a rollout of ours: its token ids, the reply's end where that library sees it."""

from __future__ import annotations

import torch

from safebench.models.generation import Encoded, Rollout, reply_texts
from safebench.models.policy import Policy


def rollout_of(policy: Policy, prompts: Encoded, replies: list[list[int]]) -> Rollout:
    """Return prompts and the ids sampled for them, [B] lists of any length, as a rollout.

    A reply ends with the tokenizer's end token, the one that TRL stops at, or is cut off.
    """
    end, device = policy.tokenizer.eos_token_id, prompts.ids.device
    pad = int(policy.tokenizer.pad_token_id)
    width = max(1, *map(len, replies))
    ids = torch.tensor([reply + [pad] * (width - len(reply)) for reply in replies], device=device)
    lengths = torch.tensor([len(reply) for reply in replies], device=device)
    mask = torch.arange(width, device=device)[None] < lengths[:, None]
    ended = torch.tensor([reply[-1:] == [end] for reply in replies], device=device)
    spoken = [reply[:-1] if reply[-1:] == [end] else reply for reply in replies]
    before = [ids[real.bool()].tolist() for ids, real in zip(prompts.ids, prompts.attention, strict=True)]
    return Rollout(
        prompts=prompts.texts,
        replies=reply_texts(policy.tokenizer, spoken, before),
        ids=torch.cat([prompts.ids, ids], dim=1),
        attention=torch.cat([prompts.attention, mask.to(prompts.attention.dtype)], dim=1),
        mask=mask,
        ended=ended,
        truncated=prompts.truncated,
    )


def cut_at_the_end(ids: list[int], end: int, pad: int) -> list[int]:
    """Return what TRL's PPO takes of sampled ids for the reply.

    That is up to the first end token, or up to a padding token before it, which the policy may sample too.
    """
    stop = ids.index(end) + 1 if end in ids else len(ids)
    return ids[: ids.index(pad)] if pad != end and pad in ids[:stop] else ids[:stop]
