"""Implement rewards, which score a reply to a prompt by a model or a Python function."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedTokenizerBase

from safebench import registry, user_code
from safebench.errors import BadResource, UsageError
from safebench.models.generation import Rollout
from safebench.models.libraries import passing, trusted
from safebench.models.loading import load_tokenizer, load_whole
from safebench.models.policy import learned_positions, no_dropout
from safebench.models.prompts import as_messages, as_text
from safebench.user_code import named

Messages = list[dict[str, str]]

_SHORT = "yes"
"""A reply that no limit cuts."""

_FRAME = 64
"""Upper bound on the tokens that a chat template and the short reply usually take."""


@dataclass(frozen=True)
class Dialogue:
    """One prompt with its reply, as a reward model's inputs without padding."""

    ids: list[int]
    size: int
    """Number of characters of its text, before any cut."""
    types: list[int] | None = None
    """Segment of each token, if the tokenizer marks prompt and reply by segments."""


class Reader:
    """Encodes dialogues with a reward model's own tokenizer, in one of three ways.

    It uses the chat template if there is one. Else it encodes a pair (prompt, reply) if the tokenizer has [CLS] and
    [SEP]. Else it encodes one text, with what stood between prompt and reply for the policy. ``limit`` is the maximum
    number of tokens that the model reads; longer dialogues lose the prompt's beginning. ``apart`` means that the policy
    has a chat template, so that its replies come without the blank that separates them. If neither prompt nor reply has
    one there, a blank is inserted.
    """

    def __init__(
        self, name: str, tokenizer: PreTrainedTokenizerBase, limit: int | None = None, *, apart: bool = True
    ) -> None:
        self.name, self.tokenizer, self.limit, self.apart = name, tokenizer, limit, apart
        self.templated = tokenizer.chat_template is not None
        self.paired = not self.templated and _reads_pairs(tokenizer)
        self.told: tuple[str, ...] = ()
        """Notices from loading the model and from the prompts that were checked."""
        self._looked = False
        self.forget()
        if self.paired:
            tokenizer.truncation_side = "left"

    def forget(self) -> None:
        """Reset the counts for the notices."""
        self.cut_prompts = 0
        """Number of dialogues so far whose prompt lost its beginning."""
        self.cut_replies = 0
        """Number of dialogues so far whose reply alone was longer than the limit and lost tokens."""
        self.folded = False
        """Whether a system turn was put in front of the first user turn."""

    @property
    def notices(self) -> tuple[str, ...]:
        """Notices for the user about the dialogues read so far."""
        told = [*self.told]
        if self.folded and not self._looked:
            told.append(
                f"the chat template of the reward {self.name} takes no system turn: "
                "it stands in front of the first user turn"
            )
        if self.cut_prompts and not self._looked:
            told.append(
                f"the reward {self.name} reads at most {self.limit} tokens: {self.cut_prompts} prompts are longer, "
                "and lose their beginning"
            )
        if self.cut_replies:
            told.append(
                f"the reward {self.name} reads at most {self.limit} tokens: "
                f"{self.cut_replies} replies are longer, and were cut"
            )
        return tuple(told)

    def look_at(self, prompts: Sequence[str]) -> None:
        """Read each prompt with a short reply, so that the notices are known before the first batch.

        Raises ``BadResource`` with the prompt's number if the chat template refuses one.
        """
        if self.templated:
            self._look_at_turns(prompts)
        # A token has at least one byte: prompts shorter than the limit in bytes need not be encoded.
        limit = float("inf") if self.limit is None else self.limit - _FRAME
        long = [prompt for prompt in prompts if len(prompt.encode(errors="replace")) > limit]
        if long:
            self.read(long, [_SHORT] * len(long))
        self.told = self.notices
        self._looked = bool(prompts)
        self.forget()

    def _look_at_turns(self, prompts: Sequence[str]) -> None:
        """Render the first prompt and all conversations of several turns; single user turns are all alike."""
        for number, prompt in enumerate(prompts, 1):
            if number > 1 and len(as_messages(prompt)) == 1:
                continue
            try:
                self.text(prompt, _SHORT)
            except BadResource as refusal:
                raise BadResource(f"prompt {number} ({str(prompt)[:60]!r}): {refusal}", refusal.hint) from refusal

    def text(self, prompt: str, reply: str) -> str:
        """Return a dialogue as one text, without the special tokens that the tokenizer itself adds."""
        if not self.templated:
            return self._joined(as_text(prompt), reply)
        messages = as_messages(prompt)
        if messages[-1]["role"] != "assistant":
            return self._rendered([*messages, {"role": "assistant", "content": reply.strip()}])
        # The policy continued a turn that the prompt begins.
        whole = self._joined(messages[-1]["content"], reply).strip()
        return self._rendered([*messages[:-1], {"role": "assistant", "content": whole}])

    def _joined(self, before: str, reply: str) -> str:
        touching = bool(before) and bool(reply) and not before[-1].isspace() and not reply[0].isspace()
        return f"{before}{' ' if touching and self.apart else ''}{reply}"

    def read(self, prompts: Sequence[str], replies: Sequence[str]) -> list[Dialogue]:
        """Return the dialogues' inputs, each within the limit."""
        if self.paired:
            return self._pairs([as_text(prompt) for prompt in prompts], [reply.strip() for reply in replies])
        texts = [self.text(prompt, reply) for prompt, reply in zip(prompts, replies, strict=True)]
        # A template writes the special tokens itself.
        found = self._ids(texts, special=not self.templated)
        end = self.tokenizer.eos_token_id
        if not self.templated and end is not None:
            found = [ids if ids[-1:] == [end] else [*ids, end] for ids in found]
        return [
            Dialogue(ids if self._fits(ids) else self._without_beginning(ids, text, reply), len(text))
            for ids, text, reply in zip(found, texts, replies, strict=True)
        ]

    def _fits(self, ids: Sequence[int]) -> bool:
        return self.limit is None or len(ids) <= self.limit

    def _ids(self, texts: list[str], *, special: bool = False) -> list[list[int]]:
        # Without ``verbose`` the tokenizer does not warn of lengths, which are cut below.
        found: list[list[int]] = self.tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]
        return found

    def _without_beginning(self, ids: list[int], text: str, reply: str) -> list[int]:
        """Return the last ids within the limit, after the token that begins every text, if there is one."""
        assert self.limit is not None
        first = ids[:1] if ids[0] in (self.tokenizer.bos_token_id, self.tokenizer.cls_token_id) else []
        room = self.limit - len(first)
        start = text.rfind(reply.strip())
        (tail,) = self._ids([text[start:] if start >= 0 else reply])
        if len(tail) > room:
            self.cut_replies += 1
        else:
            self.cut_prompts += 1
        return [*first, *ids[len(ids) - room :]]

    def _pairs(self, prompts: list[str], replies: list[str]) -> list[Dialogue]:
        encoded = self.tokenizer(prompts, replies, verbose=False)
        long = [row for row, ids in enumerate(encoded["input_ids"]) if not self._fits(ids)]
        types = encoded.get("token_type_ids") or [None] * len(prompts)
        sizes = [len(prompt) + len(reply) for prompt, reply in zip(prompts, replies, strict=True)]
        found = [
            Dialogue(ids, size, kinds) for ids, size, kinds in zip(encoded["input_ids"], sizes, types, strict=True)
        ]
        for row in long:
            found[row] = self._short_pair(prompts[row], replies[row])
        return found

    def _short_pair(self, prompt: str, reply: str) -> Dialogue:
        size = len(prompt) + len(reply)
        assert self.limit is not None
        room = self.limit - int(self.tokenizer.num_special_tokens_to_add(pair=True))
        (ids,) = self._ids([reply])
        if len(ids) > room:
            self.cut_replies += 1
            # The decoded text may take more tokens than its ids: then one more is removed.
            while len(ids) > room or len(self._ids([str(self.tokenizer.decode(ids))])[0]) > room:
                ids = ids[: min(room, len(ids) - 1)]
            prompt, reply = "", str(self.tokenizer.decode(ids))
        else:
            self.cut_prompts += 1
        one = self.tokenizer(prompt, reply, truncation="only_first", max_length=self.limit, verbose=False)
        return Dialogue(one["input_ids"], size, one.get("token_type_ids"))

    def _rendered(self, messages: Messages) -> str:
        try:
            return self._applied(messages)
        except Exception as refusal:  # a template is a program of the model's authors and may raise anything
            folded = _folded(messages)
            if folded is not None:
                try:
                    text = self._applied(folded)
                except Exception:  # it refuses both forms: the first error is reported
                    pass
                else:
                    self.folded = True
                    return text
            roles = ", ".join(message["role"] for message in messages)
            raise BadResource(
                f"the chat template of the reward {self.name} refuses a conversation ({roles}): {named(refusal)}",
                "Choose a reward that takes such conversations, or prompts without these turns.",
            ) from refusal

    def _applied(self, messages: Messages) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False))


def token_limit(model: Any, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the maximum number of tokens that model and tokenizer take, None if neither has a limit."""
    limits = [int(tokenizer.model_max_length)] if tokenizer.model_max_length < 2**31 else []
    if model is not None:
        stated = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        limits += [stated] if isinstance(stated, int) and stated > 0 else []
        limits += [places] if (places := learned_positions(model)) is not None else []
    return min(limits) if limits else None


def _reads_pairs(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a tokenizer joins two texts by its own special tokens, as BERT's and similar ones do."""
    if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
        return False
    return bool(tokenizer.num_special_tokens_to_add(pair=True) > tokenizer.num_special_tokens_to_add(pair=False))


def _folded(messages: Messages) -> Messages | None:
    """Return the conversation with its system turn put before the first user turn's text; None without one."""
    if [message["role"] for message in messages[:2]] != ["system", "user"]:
        return None
    system, user, *rest = messages
    return [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]


RewardFunction = Callable[[list[str], list[str]], Sequence[float]]


class Reward(Protocol):
    """Scores replies; higher is better."""

    name: str

    def score(self, prompts: list[str], replies: list[str]) -> Tensor:
        """Return one float32 score per reply, [B], on the CPU, all finite."""
        ...


@runtime_checkable
class RolloutReward(Protocol):
    """Scores replies by their token ids."""

    def score_rollout(self, rollout: Rollout) -> Tensor:
        """Return one float32 score per reply, [B], all finite."""
        ...


def score(reward: Reward, rollout: Rollout) -> Tensor:
    """Return the score of each reply, [B]: by its ids if the reward reads ids, else by its text."""
    if isinstance(reward, RolloutReward):
        return reward.score_rollout(rollout)
    return reward.score(rollout.prompts, rollout.replies)


class ModelReward:
    """A sequence classifier that reads the dialogue with its own tokenizer; one of its labels is the score.

    ``chunk`` dialogues of similar length are read at once, so that there is little padding. ``label`` is the index of
    the output that is the score. ``Reader`` defines ``apart``.
    """

    def __init__(
        self, name: str, model: Any, tokenizer: Any, chunk: int = 16, *, label: int = 0, apart: bool = True
    ) -> None:
        self.name, self.model, self.chunk, self.label = name, model, chunk, label
        self.reader = Reader(name, tokenizer, token_limit(model, tokenizer), apart=apart)
        self.pad, self.rows = (0, None) if model is None else (_pad_id(name, model, tokenizer), _rows(model))
        # Decoders count positions from the first column, so their padding is on the right.
        self.left = self.reader.paired and tokenizer.padding_side == "left"

    @property
    def notices(self) -> tuple[str, ...]:
        """Notices for the user about the dialogues scored so far."""
        return self.reader.notices

    @torch.no_grad()
    def score(self, prompts: list[str], replies: list[str]) -> Tensor:
        """Return the classifier's logit per reply, [B]."""
        dialogues = self.reader.read(prompts, replies)
        order = sorted(range(len(dialogues)), key=lambda row: dialogues[row].size)
        scores = torch.empty(len(dialogues))
        for start in range(0, len(order), self.chunk):
            rows = order[start : start + self.chunk]
            scores[rows] = self._scores(self.output([dialogues[row] for row in rows]))
        return checked(self.name, scores.tolist(), len(dialogues))

    def _text(self, prompt: str, reply: str) -> str:
        return self.reader.text(prompt, reply)

    def output(self, dialogues: list[Dialogue]) -> Any:
        """Return the model's output for some dialogues, padded to the longest of them."""
        longest = max(len(dialogue.ids) for dialogue in dialogues)

        def padded(rows: list[list[int]], pad: int) -> Tensor:
            fill = [[pad] * (longest - len(row)) for row in rows]
            joined = [f + row if self.left else row + f for f, row in zip(fill, rows, strict=True)]
            return torch.tensor(joined, device=self.model.device)

        ids = [dialogue.ids for dialogue in dialogues]
        if self.rows is not None and (largest := max(map(max, ids))) >= self.rows:
            raise _too_few_rows(self.name, f"token {largest}", self.rows)
        inputs = {
            "input_ids": padded(ids, self.pad),
            "attention_mask": padded([[1] * len(row) for row in ids], 0),
        }
        types = [dialogue.types for dialogue in dialogues if dialogue.types is not None]
        if len(types) == len(ids) and _takes_types(self.model, max(map(max, types))):
            inputs["token_type_ids"] = padded(types, 0)
        with passing(f"the reward {self.name}"):
            return self.model(**inputs)

    def _scores(self, output: Any) -> Tensor:
        # ArmoRM and similar models name their preference score ``score``; a classifier has logits.
        if hasattr(output, "score"):
            own: Tensor = output.score
            return own.float().reshape(len(own), -1)[:, 0].cpu()
        logits: Tensor = _logits(output)
        return logits.float()[:, self.label].cpu()


def _logits(output: Any) -> Any:
    """Return a classifier's logits from an output with attributes or from a mapping."""
    return output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)


class FunctionReward:
    """A Python function (prompts, replies) -> floats."""

    def __init__(self, name: str, function: RewardFunction) -> None:
        self.name, self.function = name, function
        self.notices: tuple[str, ...] = ()
        self._named = named_roles(function, name)

    def score(self, prompts: list[str], replies: list[str]) -> Tensor:
        """Call the function and check what it returns."""
        return called(
            self.name,
            lambda: self._ask(list(prompts), list(replies)),
            len(replies),
            "Mend it and call the same command again: the run resumes from its last checkpoint.",
            user_code.defined_at(self.function),
        )

    def _ask(self, prompts: list[str], replies: list[str]) -> Sequence[float]:
        """Call the function by keyword if its parameter names identify prompts and replies, else by position."""
        if self._named is None:
            return self.function(prompts, replies)
        given = {"prompts": prompts, "replies": replies}
        return self.function(**{name: given[role] for name, role in self._named.items()})  # type: ignore[call-arg]


REPLIES, PROMPTS = ("replies", "completions", "responses"), ("prompts", "queries")
"""Parameter names that a reward function may use in any order; other names need the order (prompts, replies)."""


def named_roles(function: Callable[..., Any], name: str) -> dict[str, str] | None:
    """Return which parameters of a reward function take the prompts and which the replies; None for that order.

    With two parameters, one known name suffices. Raises ``UsageError`` if the function needs more than these two.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # functions that are not written in Python
        return None
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    known = dict.fromkeys(REPLIES, "replies") | dict.fromkeys(PROMPTS, "prompts")
    roles = {p.name: known[p.name] for p in named if p.name in known}
    if not roles:
        return None
    missing = {"prompts", "replies"} - set(roles.values())
    more = [p.name for p in named if p.name not in roles and p.default is p.empty]
    if len(more) == 1 and len(missing) == 1:
        return {**roles, more[0]: missing.pop()}
    if more:
        raise UsageError(
            f"the reward function {name} needs {', '.join(more)} beside {', '.join(roles)}",
            "Write def score(prompts, replies); other columns of the prompts are not passed on.",
        )
    if "replies" in missing:
        return None
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return {**roles, "prompts": "prompts"} if anything and "prompts" in missing else roles


@contextlib.contextmanager
def _as_it_was() -> Iterator[None]:
    """Restore what a user's code may set for the whole process: gradients, device, precision, working directory."""
    grad, dtype, folder = torch.is_grad_enabled(), torch.get_default_dtype(), Path.cwd()
    device = torch.get_default_device()
    try:
        yield
    finally:
        torch.set_grad_enabled(grad)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device == torch.device("cpu") else device)
        torch.set_default_dtype(dtype)
        os.chdir(folder)


def called(
    name: str, function: Callable[[], Sequence[float]], count: int, hint: str, defined: str | None = None
) -> Tensor:
    """Return the values of a user's reward function, float32 [count].

    Any exception becomes a ``BadResource`` with the user's file and line, and ``hint``. If the function was not
    entered, the place is where it is ``defined``.
    """
    try:
        with _as_it_was():
            values: Any = function()
            found = list(values) if _is_list(values) else None
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as fault:  # a user's function may raise anything
        place = user_code.where(fault) or defined
        said = f"the reward function {name} raised {user_code.named(fault)}{f' ({place})' if place else ''}"
        raise BadResource(said, hint) from fault
    if found is None:
        raise BadResource(
            f"the reward {name} returned {_article(values)}, not a list of {count} numbers",
            "A reward returns exactly one number per reply, in order.",
        )
    return checked(name, found, count)


def _is_list(values: Any) -> bool:
    """Return whether iteration gives one value per reply.

    It does not for a mapping (its keys), a set (any order) or a text (its letters).
    """
    if inspect.iscoroutine(values):
        values.close()  # it is never awaited: without this, Python warns
    return (
        hasattr(values, "__iter__")
        and not isinstance(values, (Mapping, Set, str, bytes))
        and getattr(values, "ndim", 1) > 0
    )


def _article(value: Any) -> str:
    if value is None:
        return "None"
    kind = type(value).__name__
    return f"an {kind}" if kind[0] in "aeiouAEIOU" else f"a {kind}"


def checked(name: str, values: Sequence[float], count: int) -> Tensor:
    """Return ``values`` as float32 [count]; raise ``BadResource`` if there are more or fewer, or one is not finite."""
    if len(values) != count:
        raise BadResource(
            f"the reward {name} returned {len(values)} values for {count} replies",
            "A reward returns exactly one number per reply, in order.",
        )
    scores = torch.tensor([_number(name, row, value) for row, value in enumerate(values)], dtype=torch.float32)
    bad = (~torch.isfinite(scores)).nonzero().flatten().tolist()
    if bad:
        raise BadResource(
            f"the reward {name} returned {float(scores[bad[0]])} for reply {bad[0]} "
            f"({len(bad)} of {count} are not finite)",
            "A reward must be finite; score broken replies low instead.",
        )
    return scores


def _number(name: str, row: int, value: Any) -> float:
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError(f"a {type(value).__name__}")
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as fault:
        raise BadResource(
            f"the reward {name} returned something that is not a number for reply {row}: {value!r:.80}: {fault}",
            "A reward returns exactly one number per reply, in order.",
        ) from fault


def load_reward(
    name: str,
    device: torch.device,
    *,
    label: int | str | None = None,
    trust: Collection[str] = (),
    apart: bool = True,
    prompts: Sequence[str] = (),
    option: str = "--set reward.label=",
) -> Reward:
    """Return the reward of a catalogue name, hub id, local directory or ``module:function``, checked.

    ``label`` names the output of a classifier with several; ``option`` is the command-line option for it. ``trust``
    holds names of models whose own code may run. ``apart``: see ``Reader``. ``prompts`` that the reward is to read are
    checked too. Raises ``BadResource`` if the model cannot score replies; the checks run before the first batch.
    """
    source = registry.reward_source(name)
    if source.kind == "function":
        found = FunctionReward(name, _function(source.location))
        if prompts:
            _listen(found, prompts[0])
        return found
    what, code = f"reward model {name}", trusted(source, trust)
    _refuse_stated_pad(name, source.location)
    tokenizer = load_tokenizer(source.location, what, trust=code)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    model, notices = load_whole(
        AutoModelForSequenceClassification, source.location, what=what, dtype=dtype, trust=code
    )
    _refuse_other_vocabulary(name, model, tokenizer)
    no_dropout(model)
    reward = ModelReward(name, model.eval().requires_grad_(False).to(device), tokenizer, apart=apart)
    reward.reader.told = notices
    _examine(reward, label, option)
    reward.reader.look_at(prompts)
    return reward


def _listen(reward: FunctionReward, prompt: str) -> None:
    """Add a notice if a function gives two answers to one prompt the same score, as if it read the prompt alone."""
    first, second = reward.score([prompt] * 2, list(_ANSWERS)).tolist()
    if first == second:
        reward.notices = (
            f"the reward {reward.name} gives {_ANSWERS[0]!r} and {_ANSWERS[1]!r} the same score, {first:g}: "
            "it may not read the reply",
        )


_LONG = "tell me about the sea and the wind " * 8
_SAME = 1e-3
"""Share of the scores' size by which two passes over the same dialogues may differ, on any device."""
_COARSE = 5e-2
"""The same share for passes in half precision over the same dialogues in different batches."""
_ANSWERS = ("yes", "no, not at all, never")


@torch.no_grad()
def _examine(reward: ModelReward, label: int | str | None, option: str) -> None:
    """Score two answers to one prompt; raise ``BadResource`` if both read the same or there is no single score."""
    first, second = reward.reader.read([_LONG] * 2, list(_ANSWERS))
    if first.ids == second.ids:
        raise BadResource(
            f"the reward {reward.name} reads the same tokens whatever the reply is",
            "Its chat template leaves the reply out, or its limit of tokens leaves no room for it.",
        )
    output, again = (reward.output([first, second]) for _ in range(2))
    reward.label = _label(reward, output, label, option)
    scores = reward._scores(output)
    if scores.shape != (2,):
        raise BadResource(
            f"the reward {reward.name} gives scores of shape {tuple(scores.shape)} for 2 replies",
            "Its code must return one score per dialogue.",
        )
    checked(reward.name, scores.tolist(), len(scores))
    if float((scores - reward._scores(again)).abs().max()) > _SAME * float(scores.abs().max()):
        raise BadResource(
            f"the reward {reward.name} scores the same replies as {scores.tolist()} and then "
            f"{reward._scores(again).tolist()}: something in it is random",
            "Switch its dropout off, also where its own code calls it as a function.",
        )
    _choose_side(reward, [first, second])
    reward.reader.forget()


def _choose_side(reward: ModelReward, dialogues: list[Dialogue]) -> None:
    """Choose the padding side on which a dialogue beside a longer one has the same score as alone; raise if none has.

    A model's own code may read the last column, or count positions through the padding.
    """
    alone = torch.cat([reward._scores(reward.output([dialogue])) for dialogue in dialogues])
    exact = next(reward.model.parameters()).dtype == torch.float32
    most = (_SAME if exact else _COARSE) * max(float(alone.abs().max()), float(alone.max() - alone.min()))
    tried: list[Tensor] = []
    for left in (reward.left, not reward.left):
        reward.left = left
        tried.append(reward._scores(reward.output(dialogues)))
        if float((tried[-1] - alone).abs().max()) <= most:
            return
    raise BadResource(
        f"the reward {reward.name} scores the same replies alone as {alone.tolist()} and beside one another as "
        f"{tried[0].tolist()}: what it says depends on the batch",
        "Its code must mask what pads a shorter dialogue.",
    )


def _label(reward: ModelReward, output: Any, label: int | str | None, option: str) -> int:
    """Return the index of the output that is the score."""
    if hasattr(output, "score"):
        return 0
    logits = _logits(output)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise BadResource(
            f"{type(reward.model).__name__} of the reward {reward.name} gives no logits [B, labels]",
            "Its code must return an output with logits, or with a score.",
        )
    count = int(logits.shape[1])
    names = {int(i): str(n) for i, n in (getattr(reward.model.config, "id2label", None) or {}).items()}
    listed = ", ".join(f"{i} ({names[i]})" if i in names else str(i) for i in range(min(count, 10)))
    listed += ", …" if count > 10 else ""
    if count == 0:
        raise BadResource(f"the reward {reward.name} has no label", "Use a classifier with num_labels=1.")
    if label is None and count > 1:
        raise BadResource(
            f"the reward {reward.name} has {count} labels, and which of them is the score is not known: {listed}",
            f"Name one with {option}LABEL, or use a classifier with num_labels=1.",
        )
    if label is None:
        return 0
    chosen = [i for i in range(count) if label == i or (isinstance(label, str) and label == names.get(i))]
    if len(chosen) != 1:
        raise UsageError(f"the reward {reward.name} has no label {label!r}", f"There are {listed}.")
    return chosen[0]


def _rows(model: Any) -> int | None:
    """Return how many tokens the model's embedding has; None if it has no table of tokens."""
    try:
        table = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # models of bytes or of other inputs
        return None
    return int(table.weight.shape[0]) if hasattr(table, "weight") else None


def _too_few_rows(name: str, what: str, rows: int) -> BadResource:
    return BadResource(
        f"the tokenizer of the reward {name} has {what}, and the model's embedding {rows} rows: 0 to {rows - 1}",
        "Name a folder whose tokenizer belongs to its model, or resize the model's embedding and save it again.",
    )


def _refuse_other_vocabulary(name: str, model: Any, tokenizer: Any) -> None:
    """Raise if the tokenizer has words beyond the embedding; special tokens are checked where they occur."""
    rows = _rows(model)
    if rows is None:
        return
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    beyond = {i: t for t, i in tokenizer.get_vocab().items() if i >= rows and i not in special}
    if beyond:
        largest = max(beyond)
        raise _too_few_rows(name, f"token {largest} ({beyond[largest]!r})", rows)


def _refuse_stated_pad(name: str, location: str) -> None:
    """Raise ``BadResource`` for a configured padding id beyond the embedding: torch cannot build such a model."""
    try:
        described, _ = PretrainedConfig.get_config_dict(location)
    except (OSError, ValueError):  # no configuration, as in an adapter's folder, or a broken one: loading reports it
        return
    for part in (described, described.get("text_config")):
        if isinstance(part, dict):
            pad, rows = part.get("pad_token_id"), part.get("vocab_size")
            if isinstance(pad, int) and isinstance(rows, int) and pad >= rows:
                raise _too_few_rows(name, f"padding token {pad}", rows)


def _pad_id(name: str, model: Any, tokenizer: Any) -> int:
    """Return the padding id; if the model's configuration has none, the tokenizer's is written into it.

    A classifier uses this id, in the configuration of its text part, to find the last token that is not padding.
    """
    configs, rows = (model.config, model.config.get_text_config()), _rows(model)
    stated = next((i for c in configs if (i := getattr(c, "pad_token_id", None)) is not None and i >= 0), None)
    pad = next((i for i in (stated, tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), None)
    if stated is None and pad is not None and pad == tokenizer.eos_token_id:
        # In a row without padding the model reads the last token, the end token if any: it must not count as padding.
        others = [i for i in tokenizer.all_special_ids if i != pad and (rows is None or i < rows)]
        pad = others[0] if others else (rows or pad + 1) - 1
    if pad is None:
        raise BadResource(
            f"the reward {name} has neither pad nor end token", "Set pad_token in its tokenizer_config.json."
        )
    if rows is not None and not 0 <= pad < rows:
        raise _too_few_rows(name, f"padding token {pad}", rows)
    for config in configs:
        config.pad_token_id = pad
    return int(pad)


def _takes_types(model: Any, largest: int) -> bool:
    """Return whether a model has segments, and at least as many as the tokenizer uses."""
    if "token_type_ids" not in inspect.signature(model.forward).parameters:
        return False
    known = getattr(model.config.get_text_config(), "type_vocab_size", None)
    return known is None or largest < known


def _function(location: str) -> RewardFunction:
    with _as_it_was():
        function = user_code.load(location)
    if not callable(function):
        raise UsageError(
            f"the reward {location} is {_article(function)}, not a function",
            "Write def score(prompts, replies) and return one number per reply.",
        )
    return function  # type: ignore[no-any-return]
