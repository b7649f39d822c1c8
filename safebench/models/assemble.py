"""Assemble a run's components (policy, prompts, reward and judge), and check that they fit together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from safebench.config import schema as s
from safebench.config.schema import Settings
from safebench.errors import BadResource, UsageError
from safebench.models import adapters, probes
from safebench.models.audits import Auditor
from safebench.models.loading import load_with_notices
from safebench.models.policy import Policy, frozen_copy, learned_positions, no_dropout, recompute, stop_ids
from safebench.models.prompts import Prompts, as_messages, check_encoded, encode_prompt, load_prompts
from safebench.models.rewards import Reward, load_reward

SHOWN = 64
"""Number of prompts whose token ids are checked."""


def check_fit(settings: Settings, policy: Policy, prompts: Prompts) -> tuple[str, ...]:
    """Return notices about template, end token and cut prompts; raise if the model cannot read the prompts.

    Raises ``BadResource`` for token ids without an embedding and for an end token without a logit, and ``UsageError``
    for lengths beyond the model's table of positions.
    """
    shown = _shown(policy, prompts)
    _refuse_unknown_ids(settings.model.name, policy, shown)
    _refuse_lengths(settings, policy, longest_row(settings, policy, prompts))
    told = (
        template_fault(policy.tokenizer, prompts.train[0]),
        end_fault(policy.tokenizer, policy.stop_ids),
        _cut(settings.prompts.max_tokens, shown),
    )
    return tuple(text for text in told if text)


def _cut(limit: int, ids: list[list[int]]) -> str | None:
    """Return a notice of what prompts lose to the limit of their length, None if none is longer."""
    longer = [len(row) for row in ids if len(row) > limit]
    if not longer:
        return None
    return (
        f"{len(longer)} of the first {len(ids)} prompts are longer than prompts.max_tokens={limit} and lose their "
        f"beginning, its template and system turn too; --set prompts.max_tokens={max(longer)} keeps them whole"
    )


def longest_row(settings: Settings, policy: Policy, prompts: Prompts) -> int:
    """Return the maximum number of tokens of a prompt with its reply, from the prompts that are checked."""
    longest = max(map(len, _shown(policy, prompts)))
    return min(longest, settings.prompts.max_tokens) + settings.rollout.reply_tokens


def _shown(policy: Policy, prompts: Prompts) -> list[list[int]]:
    return [prompts.ids("train", row, policy.tokenizer) for row in range(min(SHOWN, len(prompts.train)))]


def template_fault(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str | None:
    """Return what is wrong with a prompt after template and tokenizer, None if nothing is."""
    ids = encode_prompt(tokenizer, prompt)
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        return f"prompts begin with {tokenizer.bos_token} twice: the chat template and the tokenizer each add one"
    if tokenizer.chat_template is None:
        return None
    asked = _rendered(tokenizer, as_messages(prompt), add_generation_prompt=True)
    again = tokenizer(asked, add_special_tokens=False)["input_ids"]
    if list(again) != ids:
        return "the chat template's text and its token ids are not the same: a prompt does not survive the way there"
    if asked == _rendered(tokenizer, as_messages(prompt), add_generation_prompt=False):
        return "the chat template has no place where the reply begins: add_generation_prompt changes nothing"
    return None


def end_fault(tokenizer: PreTrainedTokenizerBase, stops: tuple[int, ...]) -> str | None:
    """Return a notice if the template ends a reply with no token of ``stops``, else None."""
    if tokenizer.chat_template is None or not stops:
        return None
    messages = [{"role": "user", "content": "yes"}, {"role": "assistant", "content": "no"}]
    try:
        whole = _rendered(tokenizer, messages, add_generation_prompt=False)
    except TemplateError:
        return None  # a template may refuse this exchange; the prompts are checked on their own
    after = whole.rpartition("no")[2]
    ends = tokenizer(after, add_special_tokens=False)["input_ids"] if after.strip() else []
    special = [i for i in ends if i in set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)]
    if not special or set(special) & set(stops):
        return None
    written = ", ".join(str(tokenizer.convert_ids_to_tokens(i)) for i in special)
    known = ", ".join(str(tokenizer.convert_ids_to_tokens(i)) for i in stops)
    return f"the chat template ends a reply with {written}, and only {known} ends one here: set it as eos_token"


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: Any, *, add_generation_prompt: bool) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))


def _refuse_unknown_ids(name: str, policy: Policy, ids: list[list[int]]) -> None:
    rows = int(policy.base.get_input_embeddings().weight.shape[0])
    if (largest := max(map(max, ids))) >= rows:
        token = policy.tokenizer.convert_ids_to_tokens(largest)
        raise BadResource(
            f"{name}: its tokenizer writes {token!r} as {largest}, and the model has embeddings for {rows} tokens",
            "Name the tokenizer's own model, or resize the model's embedding and train it.",
        )
    if policy.stop_ids and min(policy.stop_ids) >= policy.vocabulary:
        raise BadResource(
            f"{name}: its end token is {min(policy.stop_ids)}, and the model gives logits for {policy.vocabulary} "
            "tokens: no reply could end",
            "Set eos_token in the tokenizer's config to a token of the model.",
        )


def _refuse_lengths(settings: Settings, policy: Policy, needed: int) -> None:
    """Raise ``UsageError`` for sequences beyond a learned table of positions; models without one are not limited."""
    places = learned_positions(policy.base)
    if places is not None and places < needed:
        raise UsageError(
            f"{settings.model.name} knows {places} positions; prompts and replies take up to {needed} tokens",
            "Lower --set prompts.max_tokens=… or rollout.reply_tokens=….",
        )


@dataclass(frozen=True)
class World:
    """The components of a run outside the algorithm."""

    policy: Policy
    prompts: Prompts
    reward: Reward
    judge: Reward | None
    auditor: Auditor | None = None

    @property
    def notices(self) -> tuple[str, ...]:
        """The notices of all components, each one once."""
        parts = (self.policy, self.prompts, self.reward, self.judge)
        return tuple(dict.fromkeys(text for part in parts for text in getattr(part, "notices", ())))


def assemble(settings: Settings, device: torch.device) -> World:
    """Load all components; what is missing or unfit raises an error before any training starts."""
    prompts, trust = load_prompts(settings), settings.trust_remote_code
    base, tokenizer, notices = load_with_notices(settings.model, settings.seed, device, trust=trust)
    notices = (*notices, *check_encoded(prompts, tokenizer))
    reward = load_proxy(settings, tokenizer, prompts, device)
    judge = load_judge(settings, tokenizer, prompts, device)
    policy = adapt(base, tokenizer, settings.model, settings.seed, device)
    policy.notices = (*notices, *policy.notices, *check_fit(settings, policy, prompts))
    policy = probes.probe_length(policy, settings.model.name, longest_row(settings, policy, prompts))
    auditor = Auditor(device) if settings.evaluation.audits else None
    return World(policy, prompts, reward, judge, auditor)


def adapt(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model: s.Model, seed: int, device: torch.device
) -> Policy:
    """Return the policy made from ``base`` by the settings: with a fresh LoRA adapter, or trained as a whole.

    The adapter starts as in peft (B zero, A uniform by Kaiming), drawn from the run's seed alone. The model's
    own dropout is switched off in rollouts and updates. The ratio is therefore 1 before the first update, unless
    the settings ask for dropout in the adapter. Without an adapter the reference is a frozen copy of ``base``.
    Raises ``BadResource`` if the model's own logits differ from those that the run would use (``probes``).
    """
    no_dropout(base)
    base.to(device)
    reference = frozen_copy(base) if model.lora is None else None
    if model.lora is None:
        adapted, notices = base.requires_grad_(True), tuple[str, ...]()
    else:
        adapted, notices = adapters.attach(base, model.name, model.lora, seed)
    adapted.eval()
    if model.gradient_checkpointing:
        recompute(adapted)
    adapted.to(device)
    policy = Policy(
        adapted, tokenizer, stop_ids(base, tokenizer), reference, model.mixed_precision, notices=notices
    )
    return probes.probe(policy, model.name)


def load_proxy(
    settings: Settings, tokenizer: PreTrainedTokenizerBase, prompts: Prompts, device: torch.device
) -> Reward:
    """Return the training reward; ``tokenizer`` is the policy's."""
    chosen = settings.reward
    return _scorer(settings, tokenizer, prompts, device, chosen.name, label=chosen.label)


def load_judge(
    settings: Settings, tokenizer: PreTrainedTokenizerBase, prompts: Prompts, device: torch.device
) -> Reward | None:
    """Return the judge, or None if the settings name none."""
    chosen = settings.reward
    if not chosen.judge:
        return None
    option = "--set reward.judge_label="
    return _scorer(settings, tokenizer, prompts, device, chosen.judge, label=chosen.judge_label, option=option)


def _scorer(
    settings: Settings,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    device: torch.device,
    name: str,
    **named: Any,
) -> Reward:
    return load_reward(
        name,
        device,
        trust=settings.trust_remote_code,
        apart=tokenizer.chat_template is not None,
        prompts=[*prompts.train, *prompts.heldout],
        **named,
    )
