"""Compare a model's own logits for a few tokens with those of our passes; a run starts only if the two agree.

The model's own logits are the ground truth. They are compared with the logits from hidden state and output layer, from
padded rows, from tokens sampled from a cache, and from two passes in training mode. With the adapter off, no trained
parameter may have an effect. No list of model names is used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import peft
import torch
import transformers
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from safebench.errors import BadResource, UsageError
from safebench.models import policy as policies
from safebench.models import seeding
from safebench.models.policy import ForwardPath, LastStates, accepted, forward_pass, output_layer, positions
from safebench.rl import kl
from safebench.rl.kl import LogitForm

if TYPE_CHECKING:
    from safebench.models.policy import Policy

UNLIKE = (RuntimeError, TypeError, AttributeError, ValueError, LookupError, AssertionError)
"""Exceptions that a model may raise on an unsuitable path; another path may work."""
TOKENS = 12
"""Number of tokens in a probe's longer row; the shorter row has seven."""
TRAINED = 4
"""Number of tokens in the longer row of a training pass; the shorter row has two. The checks do not depend on length.
A backward pass in bfloat16 on a CPU takes half a second per token with half a billion weights."""
PADDINGS: tuple[Literal["left", "left, own places", "right"], ...] = ("left", "left, own places", "right")
DECODINGS: tuple[Literal["cache", "cache, no mask", "whole"], ...] = ("cache", "cache, no mask", "whole")
SINGLY = 4
"""Number of a row's last tokens that enter the cache one by one."""
NO_CACHE = "{name} keeps no cache that agrees with its whole pass: each sampled token takes a whole pass"
MOST_SPECIAL = 32
"""Maximum number of special tokens that are probed; some tokenizers have hundreds in reserve."""
FINE, COARSE = 1e-4, 5e-2
"""Largest share of the logits' spread that rounding explains, in float32 and in bfloat16. Passes over the same tokens
with other padding and grouping differ by up to 1e-5 and 2e-2 (tests/models/test_probes.py)."""


class Gap(NamedTuple):
    """The difference of two tensors of logits."""

    share: float
    """Root mean square of the difference, as a share of the spread of the first."""
    own: float
    """The first tensor's logit where the difference is largest."""
    ours: float

    def __str__(self) -> str:
        """Return a text with both logits and the share."""
        return f"the model's own logit is {self.own:.6g}, ours {self.ours:.6g} ({self.share:.2g} of the logits' spread)"


def gap(own: Tensor, ours: Tensor) -> Gap:
    """Return the difference of two tensors of logits of one shape, as a share of their spread.

    A classifier's single logit per row may be nearly the same for every row. The share is then that of the logits'
    size (root mean square).
    """
    single = own.dim() > 0 and own.shape[-1] == 1
    own, ours = own.detach().double().flatten(), ours.detach().double().flatten()
    apart = own - ours
    worst = int(apart.abs().argmax())
    spread = float(own.square().mean().sqrt() if single else own.std()) or 1.0
    share = float(apart.square().mean().sqrt()) / spread
    return Gap(share if share == share else float("inf"), float(own[worst]), float(ours[worst]))


def probe(policy: Policy, name: str) -> Policy:
    """Return the policy with the paths by which its logits and its reference's logits are computed.

    Raises ``BadResource`` or ``UsageError``, with both numbers, if our logits, sampling, padding or reference differ
    from the model's own. The answer is kept in the user's cache, under a digest of all that it depends on.
    """
    file = _answer_file(policy, name)
    kept = _kept_answer(file)
    if kept is None:
        try:
            with seeding.undisturbed(policy.device), _all_cores():
                kept = _measured_answer(policy, name)
        except UNLIKE as fault:
            raise BadResource(
                f"{name} ({type(policy.base).__name__}): a pass over a few tokens ends in "
                f"{type(fault).__name__}: {fault}",
                "Try --set model.gradient_checkpointing=false, or other --set model.lora.targets=….",
            ) from fault
        _keep_answer(file, kept)
    return dataclasses.replace(
        policy, path=kept.path, reference_path=kept.reference_path, notices=(*policy.notices, *kept.notices)
    )


@torch.no_grad()
def probe_length(policy: Policy, name: str, tokens: int) -> Policy:
    """Return the policy with a way of sampling that agrees in rows of ``tokens`` tokens, as long as a run's rows.

    Windows, chunks and tables of positions have an effect only in rows that reach beyond them, not in rows of a few
    tokens. Raises ``BadResource``, with both numbers, if our logits differ from the model's own. The answer is kept in
    the same way as that of ``probe``.
    """
    tokens = max(tokens, TOKENS)
    file = _answer_file(policy, name)
    file = file.with_name(f"{file.stem}-{tokens}{file.suffix}")
    kept = _kept_answer(file)
    if kept is None:
        try:
            with seeding.undisturbed(policy.device), _all_cores():
                kept = _measured_length(policy, name, tokens)
        except UNLIKE as fault:
            raise BadResource(
                f"{name} ({type(policy.base).__name__}): a row of {tokens} tokens, as long as prompt and reply may be, "
                f"ends in {type(fault).__name__}: {fault}",
                "Use shorter prompts or replies, or another model.",
            ) from fault
        _keep_answer(file, kept)
    return dataclasses.replace(policy, path=kept.path, notices=(*policy.notices, *kept.notices))


def _measured_length(policy: Policy, name: str, tokens: int) -> Answer:
    ids = _question(policy.tokenizer, policy.base, policy.device, tokens)[0]
    one = ModelProbe(policy.base, name, ids, ids[:0], _pad(policy), _tolerance(policy), policy.precision)
    if isinstance(policy.reference, PreTrainedModel):
        other = dataclasses.replace(one, base=policy.reference, name=f"the reference of {name}")
        other.check_length(policy.reference_path)
    path = one.long_path(policy.path)
    slow = path.decoding == "whole" != policy.path.decoding
    return Answer(path, policy.reference_path, (NO_CACHE.format(name=name),) if slow else ())


class Answer(NamedTuple):
    """Result of the probes of a policy."""

    path: ForwardPath
    reference_path: ForwardPath
    notices: tuple[str, ...]


def _measured_answer(policy: Policy, name: str) -> Answer:
    ids, special = _question(policy.tokenizer, policy.base, policy.device)
    one = ModelProbe(policy.base, name, ids, special, _pad(policy), _tolerance(policy), policy.precision)
    path, reference_path = one.path(), policy.reference_path
    if isinstance(policy.reference, PreTrainedModel):
        other = dataclasses.replace(one, base=policy.reference, name=f"the reference of {name}")
        reference_path = other.measuring_path()
    found = dataclasses.replace(policy, path=path, reference_path=reference_path)
    told = check_training(found, ids, name)
    check_reference(found, ids, name)
    slow = (NO_CACHE.format(name=name),) if path.decoding == "whole" else ()
    return Answer(path, reference_path, (*slow, *told))


@contextlib.contextmanager
def _all_cores() -> Iterator[None]:
    """Let torch use all cores within this context; a run's own number of threads only serves bit-identical results."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(threads, os.cpu_count() or 1))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _tolerance(policy: Policy) -> float:
    coarse = policy.mixed_precision or any(p.dtype in (torch.bfloat16, torch.float16) for p in policy.base.parameters())
    return COARSE if coarse else FINE


def _question(
    tokenizer: PreTrainedTokenizerBase, base: PreTrainedModel, device: torch.device, tokens: int = TOKENS
) -> tuple[Tensor, Tensor]:
    """Return ids [tokens] of ordinary tokens, and ids [N] of special tokens (padding, end, placeholders)."""
    rows = int(base.get_input_embeddings().weight.shape[0])
    stated = [int(i) for key, i in _numbers(base.config.to_dict()) if key.endswith(("token_id", "token_index"))]
    special = dict.fromkeys([*stated, *tokenizer.all_special_ids])
    known = [i for i in range(min(rows, len(tokenizer) or rows)) if i not in special]
    if not known:
        raise BadResource("the tokenizer knows no ordinary token of the model", "Name the tokenizer's own model.")
    chosen = [known[i % len(known)] for i in seeding.order(0, 0, max(len(known), tokens))[:tokens]]
    others = [i for i in special if 0 <= i < rows][:MOST_SPECIAL]
    return torch.tensor(chosen, device=device), torch.tensor(others, dtype=torch.long, device=device)


def _numbers(config: Mapping[str, Any], key: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number of a configuration with its key, including nested ones."""
    for name, value in config.items():
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, Mapping):
                yield from _numbers(item, name)
            elif isinstance(item, int | float) and not isinstance(item, bool):
                yield name, item


@dataclasses.dataclass(frozen=True)
class ModelProbe:
    """Probe of one model with a few tokens."""

    base: PreTrainedModel
    name: str
    ids: Tensor
    """[T]: ordinary tokens"""
    special: Tensor
    """[N]: special tokens, which may also be sampled"""
    pad: int
    tolerance: float
    precision: Callable[[], contextlib.AbstractContextManager[Any]]

    @torch.no_grad()
    def path(self) -> ForwardPath:
        """Return how the model's logits are computed, and how tokens are sampled from it."""
        path = self.measuring_path()
        return self._sampling_path(path, self._last_logits(path, *_padded(self.ids, self.ids[:-5], self.pad)))

    @torch.no_grad()
    def measuring_path(self) -> ForwardPath:
        """Return how the model's logits are computed from its hidden states, and where its rows are padded.

        The candidates are the decoder's last hidden state and the output layer's input, each with the plain product
        and with every number of the configuration as a multiplier, divisor or soft-cap. The form with the smallest
        difference is taken.
        """
        head = self._head()
        try:
            row = torch.cat([self.ids, self.special])
            own = self._own(row)
        except UNLIKE:  # e.g. an image placeholder without its image: use only ordinary tokens
            row = self.ids
            own = self._own(row)
        if not bool(torch.isfinite(own).all()):
            raise BadResource(
                f"{self.name}: its logits are not finite", "Load it in another precision, or mend its weights."
            )
        if gap(own, self._own(row)).share > self.tolerance:
            raise self._refusal(
                "two of its own passes over the same tokens differ: something in it is random",
                "Use another model: what is sampled could not be measured.",
            )
        found = list(self._attempts(head, row, own))
        best = min(found, key=lambda attempt: attempt[0])
        if best[0] > self.tolerance:
            raise self._refusal(
                f"its logits are more than a product of hidden state and output layer: {best[2]}",
                "Use another model: training through other logits than its own would be training another model.",
            )
        self._check_causal(best[1])
        return self._padding_path(best[1])

    def _head(self) -> Any:
        head: Any = self.base.get_output_embeddings()
        if head is None or not isinstance(getattr(head, "weight", None), Tensor):
            raise self._refusal("it has no output layer to train through", "Use a causal language model.")
        return head

    def _own(self, row: Tensor) -> Tensor:
        """Return the logits [1, T, V] of the model's own forward pass over a row."""
        with self.precision():
            # Without a mask, some models make their own from the positions of the pad token.
            inputs = {"input_ids": row[None], "attention_mask": torch.ones_like(row[None]), "use_cache": False}
            logits: Tensor = self.base(**accepted(self.base, inputs)).logits
        return logits

    def _attempts(self, head: Any, row: Tensor, own: Tensor) -> Iterator[tuple[float, ForwardPath, Gap | str]]:
        """Yield the difference of each way to compute the logits; the first difference of zero ends the search."""
        ones = torch.ones_like(row[None])
        for captured in (False, True):
            within = False
            for padding in PADDINGS[:2]:
                path = ForwardPath(captured=captured, padding=padding)
                try:
                    hidden = self._run(path, row[None], ones)
                    for form in _forms(self.base, own.shape[-1], len(head.weight)):
                        apart = gap(own, output_layer(head, form)(hidden))
                        yield apart.share, path._replace(form=form), apart
                        if apart.share == 0.0:
                            return
                        within = within or apart.share <= self.tolerance
                except UNLIKE as fault:
                    yield float("inf"), path, f"{type(fault).__name__}: {fault}"
            if within:
                return

    def _run(self, path: ForwardPath, ids: Tensor, mask: Tensor) -> Tensor:
        with self.precision():
            return forward_pass(self.base, path, ids, mask, positions(mask))[0]

    def _logits(self, path: ForwardPath, ids: Tensor, mask: Tensor) -> Tensor:
        return output_layer(self._head(), path.form)(self._run(path, ids, mask))

    def _last_logits(self, path: ForwardPath, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the logits [B, SINGLY + 1, V] of the last positions from one whole pass."""
        hidden = self._run(path, ids, mask)[:, -SINGLY - 1 :]
        return output_layer(self._head(), path.form)(hidden)

    @torch.no_grad()
    def long_path(self, path: ForwardPath) -> ForwardPath:
        """Return the path with the way of sampling that agrees in rows this long; raise if whole passes do not."""
        return self._sampling_path(path, self.check_length(path))

    @torch.no_grad()
    def check_length(self, path: ForwardPath) -> Tensor:
        """Raise ``BadResource`` if rows this long, or rows padded to this length, give other logits than alone.

        Returns the last logits [2, SINGLY + 1, V] of both rows from one whole pass.
        """
        rows, mask = _padded(self.ids, self.ids[:-5], self.pad)
        ours = self._last_logits(path, rows, mask)
        for row, said in zip((self.ids, self.ids[:-5]), ours, strict=True):
            own = self._own(row)[0]
            start = gap(self._own(row[:TOKENS])[0], own[:TOKENS]) if row is self.ids else None
            if start is not None and start.share > self.tolerance:
                raise self._refusal(
                    f"what it says of its first {TOKENS} tokens depends on how many follow, here {len(row)}: {start}",
                    "Keep prompt and reply shorter than where this begins (--set prompts.max_tokens=…, "
                    "--set rollout.reply_tokens=…): what is sampled could not be measured.",
                )
            apart = gap(own[-SINGLY - 1 :], said)
            if apart.share > self.tolerance:
                raise self._refusal(
                    f"a row of {len(row)} tokens in a batch {len(self.ids)} wide says something else than alone: "
                    f"{apart}",
                    "Use shorter prompts or replies, or another model.",
                )
        return ours

    def _check_causal(self, path: ForwardPath) -> None:
        """Raise ``BadResource`` for a model whose tokens attend to later tokens."""
        rows = torch.stack([self.ids, torch.cat([self.ids[:-1], self.ids[:1]])])
        apart = gap(*self._logits(path, rows, torch.ones_like(rows))[:, :-1])
        if apart.share > self.tolerance:
            raise self._refusal(
                f"another last token changes a logit before it from {apart.own:.6g} to {apart.ours:.6g}: "
                "it is no causal language model",
                "Set is_decoder in its config.json if it was trained as a decoder, or use another model.",
            )

    def _padding_path(self, path: ForwardPath) -> ForwardPath:
        """Return the path with a padding that does not change a shorter row's logits; the path's own is tried first."""
        short = self.ids[:-5]
        rows, mask = _padded(self.ids, short, self.pad)
        alone = self._logits(path, short[None], torch.ones_like(short[None]))[0]
        return self._first_like(
            alone,
            [path._replace(padding=padding) for padding in PADDINGS[PADDINGS.index(path.padding) :]],
            lambda trial: self._logits(trial, rows, mask)[1, -len(short) :],
            "a row that is padded says something else than alone",
            "Use another model: batches of prompts of different lengths are padded.",
        )

    def _first_like(
        self, own: Tensor, trials: list[ForwardPath], logits: Callable[[ForwardPath], Tensor], what: str, hint: str
    ) -> ForwardPath:
        """Return the first path whose logits agree with ``own``; if none does, raise with the first difference."""
        said: Gap | str = ""
        for trial in trials:
            try:
                apart = gap(own, logits(trial))
            except UNLIKE as fault:
                said = said or f"{type(fault).__name__}: {fault}"
                continue
            if apart.share <= self.tolerance:
                return trial
            said = said or apart
        raise self._refusal(f"{what}: {said}", hint)

    def _sampling_path(self, path: ForwardPath, whole: Tensor) -> ForwardPath:
        """Return the path with the way of sampling that agrees with ``whole``, ``_last_logits`` of one whole pass."""
        rows, mask = _padded(self.ids, self.ids[:-5], self.pad)
        first = DECODINGS.index(path.decoding if path.padding != "right" else "whole")
        return self._first_like(
            whole,
            [path._replace(decoding=way) for way in DECODINGS[first:]],
            lambda trial: self._one_by_one(trial, rows, mask),
            "sampled token by token it says something else than in one pass",
            "Use another model: its replies would be sampled otherwise than they are measured.",
        )

    def _one_by_one(self, path: ForwardPath, rows: Tensor, mask: Tensor) -> Tensor:
        """Return the logits [2, SINGLY + 1, V] after all but the last ``SINGLY`` tokens, and after each of these."""
        before = rows.shape[1] - SINGLY
        cached = path.decoding != "whole"
        run = functools.partial(forward_pass, self.base, path)
        states = LastStates(run, rows[:, :before], mask[:, :before], cached=cached)
        layer, found = output_layer(self._head(), path.form), []
        for t in range(before, rows.shape[1] + 1):
            with self.precision():
                hidden = states.now()
            if cached and not states.cache:
                raise ValueError("the model returns no cache")
            found.append(layer.few(hidden))
            if t < rows.shape[1]:
                states.append(rows[:, t])
        return torch.stack(found, dim=1)

    def _refusal(self, what: str, hint: str) -> BadResource:
        return BadResource(f"{self.name} ({type(self.base).__name__}): {what}", hint)


def _forms(base: PreTrainedModel, vocabulary: int, rows: int) -> Iterator[LogitForm]:
    """Yield the possible forms of the logits, the plain product of hidden state and output layer first."""
    values = {float(v) for _, v in _numbers(base.config.to_dict())}
    values |= {float(v) for v in vars(base).values() if isinstance(v, float)}
    usable = sorted(v for v in values if 0 < v < float("inf") and v != 1.0)
    kept = vocabulary if vocabulary < rows else None
    for scale in (1.0, *usable, *(1 / v for v in usable)):
        yield LogitForm(scale, None, kept)
    for cap in usable:
        yield LogitForm(1.0, cap, kept)


def check_training(policy: Policy, ids: Tensor, name: str) -> tuple[str, ...]:
    """Return notices of a training pass; raise if it differs from a sampling pass or its gradient is not finite.

    Two passes in training mode, without the adapter's own dropout, must be bit-identical. With an adapter that has an
    effect, they must agree with a pass in evaluation mode. Their gradients must be finite although rows are padded.
    """
    trained = policy.trainable()
    if not trained:
        return ()
    rows, mask = _padded(ids[:TRAINED], ids[: TRAINED - 2], _pad(policy))
    real = mask.bool()
    moved = {key: p for key, p in trained.items() if "lora_B" in key}
    with _without_dropout(policy), _moved(list(moved.values()), lambda p: p + 0.02):
        with torch.no_grad():
            still = _states(policy, rows, mask)
        with policy.training(), torch.enable_grad():
            first, second = (_states(policy, rows, mask) for _ in range(2))
            logits = policy.logits(first[real])
            loss = logits.log_softmax(-1)[:, 0].sum()
            gradients: Sequence[Tensor | None] = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    if not torch.equal(first[real], second[real]):
        apart = float((first - second)[real].detach().abs().max())
        raise BadResource(
            f"{name} ({type(policy.base).__name__}): two passes in training mode differ by up to {apart:.3g}: "
            "dropout of the model's own is on",
            "Set its dropout to 0 in its config.json.",
        )
    apart_modes = gap(policy.logits(still[real]), logits)
    if apart_modes.share > _tolerance(policy):
        raise BadResource(
            f"{name} ({type(policy.base).__name__}): a pass in training mode is not that in evaluation mode: "
            f"{apart_modes}",
            "Use another model: it would be trained otherwise than it is sampled.",
        )
    for key, gradient in zip(trained, gradients, strict=True):
        if gradient is not None and not bool(torch.isfinite(gradient).all()):
            raise BadResource(
                f"{name} ({type(policy.base).__name__}): the gradient of {key} is not finite where rows are padded",
                "Use another model, or prompts of equal length.",
            )
    dead = [
        key.partition(".lora_B")[0].removeprefix("base_model.model.")
        for key, gradient in zip(trained, gradients, strict=True)
        if key in moved and (gradient is None or not bool(gradient.any()))
    ]
    if not dead:
        return ()
    more = f" and {len(dead) - 3} more" if len(dead) > 3 else ""
    return (
        f"{len(dead)} of the {len(moved)} adapted layers of {name} had no part in a pass over a few tokens: "
        f"{', '.join(dead[:3])}{more}",
    )


def _states(policy: Policy, ids: Tensor, mask: Tensor) -> Tensor:
    """Return ``Policy.hidden_states``; ``probe`` words its errors, because the settings may be their cause."""
    with policy.precision():
        return forward_pass(policy.base, policy.path, ids, mask, positions(mask))[0]


@contextlib.contextmanager
def _without_dropout(policy: Policy) -> Iterator[None]:
    asked: list[Any] = policy.dropouts()
    kept = [module.p for module in asked]
    for module in asked:
        module.p = 0.0
    try:
        yield
    finally:
        for module, p in zip(asked, kept, strict=True):
            module.p = p


@contextlib.contextmanager
def _moved(parameters: list[Any], to: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Give parameters other values within this context; restore them afterwards."""
    kept = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p in parameters:
            p.copy_(to(p))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(parameters, kept, strict=True):
                p.copy_(value)


@torch.no_grad()
def check_reference(policy: Policy, ids: Tensor, name: str) -> None:
    """Raise ``UsageError`` if training moves the reference: with the adapter off, no trained weight may act."""
    if not isinstance(policy.model, PeftModel) or isinstance(policy.reference, PreTrainedModel):
        return
    mask = torch.ones_like(ids[None])

    def reference() -> Tensor:
        with warnings.catch_warnings():
            # peft warns of biases that are trained in place: their effect is measured here.
            warnings.filterwarnings("ignore", message="Careful, disabling adapter layers", category=UserWarning)
            return states()

    def states() -> Tensor:
        with policy.as_reference():
            hidden = policy.hidden_states(ids[None], mask)
        return policy.reference_output(hidden)

    before = reference()
    trained = policy.trainable()
    if not _moves(reference, before, list(trained.values())):
        return
    movers = [key for key, p in trained.items() if "lora_" not in key and _moves(reference, before, [p])]
    more = f" and {len(movers) - 3} more" if len(movers) > 3 else ""
    raise UsageError(
        f"{name}: training {', '.join(movers[:3]) or 'the adapter'}{more} moves the reference too, "
        "which is the model with the adapter off",
        "Use bias='none' and adapt no layer that the reference shares, or pass a reference model of its own.",
    )


def _moves(measured: Callable[[], Tensor], before: Tensor, parameters: list[nn.Parameter]) -> bool:
    """Return whether other values of ``parameters`` change the measured tensor; the values are restored."""
    with _moved(parameters, lambda p: p + 0.5 + p.abs()):
        return not torch.equal(measured(), before)


def _pad(policy: Policy) -> int:
    pad = policy.tokenizer.pad_token_id
    return 0 if pad is None else int(pad)


def _padded(long: Tensor, short: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """Return both rows [2, T], the shorter padded on the left, and their mask."""
    before = len(long) - len(short)
    rows = torch.stack([long, torch.cat([long.new_full((before,), pad), short])])
    mask = torch.ones_like(rows)
    mask[1, :before] = 0
    return rows, mask


def _kept_answer(path: Path) -> Answer | None:
    """Return the answer of an earlier probe of the same model, or None if there is none."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        paths = [ForwardPath(LogitForm(*form), *rest) for form, *rest in kept["paths"]]
        return Answer(paths[0], paths[1], tuple(kept["notices"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None  # missing or not readable: the probes are run


def _keep_answer(path: Path, answer: Answer) -> None:
    text = json.dumps({"paths": [answer.path, answer.reference_path], "notices": answer.notices})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}")
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError:
        return  # if the cache cannot be written, the next run repeats the probes


def _answer_file(policy: Policy, name: str) -> Path:
    """Return the answer's path, which has a digest of configuration, weights, and versions as its name."""
    digest = hashlib.blake2b(digest_size=16)
    tokenizer, adapters = policy.tokenizer, getattr(policy.model, "peft_config", {})
    for part in (
        *(Path(str(module.__file__)).read_text(encoding="utf-8") for module in _DECIDES),
        *(torch.__version__, transformers.__version__, peft.__version__),
        repr((name, policy.device.type, policy.mixed_precision, type(policy.reference))),
        repr((tokenizer.pad_token_id, len(tokenizer), tokenizer.all_special_ids)),
        # The names of layers are a set, whose order differs between processes.
        json.dumps({key: config.to_dict() for key, config in adapters.items()}, sort_keys=True, default=_sorted),
    ):
        digest.update(part.encode())
    models = [policy.base, *([policy.reference] if isinstance(policy.reference, PreTrainedModel) else [])]
    for model in models:
        digest.update(f"{type(model)} {model.config.to_json_string(use_diff=False)}".encode())
        checkpointed = [n for n, m in model.named_modules() if getattr(m, "gradient_checkpointing", False)]
        digest.update(repr(checkpointed).encode())
        for key, p in model.named_parameters():
            held = _held(p.detach()) if "lora_" not in key else ""
            digest.update(f"{key} {tuple(p.shape)} {p.dtype} {p.requires_grad} {held}".encode())
        for key, buffer in model.named_buffers():
            digest.update(f"{key} {tuple(buffer.shape)} {buffer.dtype} {_held(buffer)}".encode())
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "safebench" / "probes" / f"{digest.hexdigest()}.json"


def _held(x: Tensor) -> str:
    """Return a few of a tensor's values and a sum of all bits that does not depend on order or number of cores."""
    few = x.flatten()[:4].float().cpu().tolist()
    return f"{few} {int(torch.hash_tensor(x).view(torch.int64)) if x.numel() else 0}"


_DECIDES = (sys.modules[__name__], policies, kl)
"""Modules whose code an answer depends on."""


def _sorted(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)
