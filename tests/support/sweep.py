"""What safebench makes of every causal language model class; `python -m tests.support.sweep [TYPE …]` writes a page.

The truth is what a model's own forward pass says of one row without padding, of a copy of the base with an adapter
that peft put on; it shares no code with what is checked.
"""

from __future__ import annotations

import copy
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast, logging

from safebench.config import schema as s
from safebench.errors import SafebenchError
from safebench.models.assemble import adapt
from safebench.models.generation import Rollout, encode, sample
from safebench.models.policy import Policy
from safebench.models.probes import probe_length
from tests.support.tiny import CPU, draws
from tests.support.tiny_models import MODEL_TYPES, PAD, VOCABULARY, NotBuilt, tiny_model

LENGTHS = (3, 12, 7)
"""Of the prompts; the longest is longer than the windows of tiny_models."""
REPLY = 8
"""Tokens of a reply at most: with its prompt the longest row is 20 tokens long."""
TOLERANCE = 1e-3
"""Largest difference of two log-probabilities in float32 that padding and grouping explain; nats."""
EDGE = 1e-5
"""Largest distance of a uniform number from the interval of the token that was drawn for it."""


@dataclass
class Verdict:
    """What came of one model type."""

    model_type: str
    name: str = ""
    """Of the class."""
    says: str = "agrees"
    """agrees, refused, not built, or DIFFERS."""
    reason: str = ""
    hint: str | None = None
    exit_code: int | None = None
    faults: list[str] = field(default_factory=list)
    """What differs."""
    gaps: dict[str, float] = field(default_factory=dict)
    path: str = ""
    """How the policy reaches the logits, where it is no plain way."""
    notices: tuple[str, ...] = ()
    dead: tuple[str, ...] = ()
    """Adapter matrices that no token reaches, in the model's own pass either."""
    adapters: int = 0
    seconds: float = 0.0


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word; the ids at the vocabulary's end stand for images and the like."""
    ids = {word: i for i, word in enumerate(["<pad>", "<end>", *(f"t{i}" for i in range(2, VOCABULARY))])}
    model = Tokenizer(WordLevel(ids, unk_token="<pad>"))
    model.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", eos_token="<end>")


def examine(model_type: str, base: PreTrainedModel | None = None) -> Verdict:
    """Return what comes of a model, by default the tiny one of this type; whatever else than our errors is raised."""
    started = time.perf_counter()
    verdict = Verdict(model_type)
    try:
        base = tiny_model(model_type) if base is None else base
    except NotBuilt as fault:
        verdict.says, verdict.reason = "not built", str(fault)
        return verdict
    verdict.name = type(base).__name__
    alone = copy.deepcopy(base).eval()
    try:
        try:
            policy = adapted(base, recomputing=True)
        except SafebenchError as fault:
            if "gradient_checkpointing" not in f"{fault} {fault.hint}":
                raise
            verdict.notices = (f"with gradient checkpointing refused: {fault}",)
            policy = adapted(copy.deepcopy(alone), recomputing=False)
    except SafebenchError as fault:
        verdict.says, verdict.reason, verdict.hint = "refused", str(fault), fault.hint
        verdict.exit_code = fault.exit_code
    else:
        verdict.notices += policy.notices
        verdict.path = path_of(policy)
        with warnings.catch_warnings():
            # peft asks what a copy of a model is called, and some copies have no name.
            warnings.simplefilter("ignore")
            compare(policy, alone, verdict)
        if verdict.faults:
            verdict.says = "DIFFERS"
    verdict.seconds = time.perf_counter() - started
    return verdict


LONG = 40
"""Tokens of the row that is as long as a run's; the tiny models' windows are shorter."""


def adapted(base: PreTrainedModel, *, recomputing: bool) -> Policy:
    """Return the policy that safebench makes of a model, with an adapter on every linear layer."""
    model = s.Model(
        name=base.config.model_type, lora=s.Lora(targets=("all-linear",)), gradient_checkpointing=recomputing
    )
    with warnings.catch_warnings():
        # transformers' new name for gradient checkpointing, asked for by peft under the old one.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        return probe_length(adapt(base, tokenizer(), model, 0, CPU), model.name, LONG)


def path_of(policy: Policy) -> str:
    """Say in what the policy's way to its logits is not the plain one."""
    path, plain = policy.path, type(policy.path)()
    form = [f"{n} {v:.6g}" for n, v in path.form._asdict().items() if v != getattr(plain.form, n)]
    return ", ".join(form + [f"{n}: {v}" for n, v in path._asdict().items() if v != getattr(plain, n) and n != "form"])


def compare(policy: Policy, alone: PreTrainedModel, verdict: Verdict) -> None:
    """Write into the verdict where the policy differs from the model's own passes."""
    twin = get_peft_model(copy.deepcopy(alone), copy.deepcopy(policy.model.peft_config["default"])).eval()
    move(policy)
    copied = dict(twin.named_parameters())
    with torch.no_grad():
        for name, parameter in policy.trainable().items():
            copied[name].copy_(parameter)
    own: PreTrainedModel = twin.get_base_model()

    rollout = sampled(policy)
    rows = [rollout.ids[i][rollout.attention[i].bool()] for i in range(len(LENGTHS))]
    with torch.no_grad():
        truth = [log_probs(own, row) for row in rows]
        reference = [log_probs(alone, row) for row in rows]

    def check(what: str, gap: float, limit: float = TOLERANCE) -> None:
        verdict.gaps[what] = gap
        if not gap <= limit:
            verdict.faults.append(f"{what}: {gap:.3g}")

    with torch.no_grad():
        logits = policy.logits(policy.hidden_states(rollout.ids, rollout.attention))
        check("logits", largest(rollout, logits, truth))
        with policy.as_reference():
            hidden = policy.hidden_states(rollout.ids, rollout.attention)
        check("reference", largest(rollout, policy.reference_output(hidden), reference))
    check("sampling", max(off_edge(rollout, i, truth[i]) for i in range(len(rows))), EDGE)

    passes = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with policy.training():
            passes.append(policy.hidden_states(rollout.ids, rollout.attention))
    real = rollout.attention.bool()
    check("two passes", float((passes[0] - passes[1])[real].abs().max()), 0.0)
    logits = policy.logits(passes[1])
    check("training pass", largest(rollout, logits.detach(), truth))
    compare_gradients(policy, twin, rollout, verdict)


def move(policy: Policy) -> None:
    """Draw the adapter's second matrices, zero at the start, so that policy and reference are two models."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in policy.trainable().items():
            if "lora_B" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))


NOISE = draws(len(LENGTHS), REPLY)


def sampled(policy: Policy) -> Rollout:
    """Sample replies to prompts of several lengths, padded on the left."""
    generator = torch.Generator().manual_seed(4)
    prompts = [torch.randint(2, VOCABULARY - 20, (n,), generator=generator).tolist() for n in LENGTHS]
    texts = [" ".join(f"t{i}" for i in prompt) for prompt in prompts]
    return sample(policy, encode(texts, prompts, max(LENGTHS), PAD, CPU), NOISE, 1.0)


def log_probs(model: PreTrainedModel, row: Tensor) -> Tensor:
    """Return what the model's own pass over one row [T] says of each next token, [T, V]."""
    logits = model(input_ids=row[None], attention_mask=torch.ones_like(row[None]), use_cache=False).logits
    return torch.log_softmax(logits[0].float(), dim=-1)


def largest(rollout: Rollout, logits: Tensor, truth: list[Tensor]) -> float:
    """Return the largest difference of two log-probabilities on real tokens; nats."""
    ours = torch.log_softmax(logits.float(), dim=-1)
    gaps = [(ours[i][rollout.attention[i].bool()] - own).abs().max() for i, own in enumerate(truth)]
    return float(torch.stack(gaps).max())


def off_edge(rollout: Rollout, i: int, truth: Tensor) -> float:
    """Return how far row i's noise is at most from the interval of the token that it drew."""
    tokens = rollout.tokens[i][rollout.mask[i]]
    probabilities = truth[-len(tokens) - 1 : -1].double().exp()
    upper = probabilities.cumsum(-1) / probabilities.sum(-1, keepdim=True)
    above = upper.gather(-1, tokens[:, None])[:, 0]
    below = above - probabilities.gather(-1, tokens[:, None])[:, 0]
    noise = NOISE[i, : len(tokens)]
    return float(torch.maximum(below - noise, noise - above).clamp(min=0).max())


def compare_gradients(policy: Policy, twin: torch.nn.Module, rollout: Rollout, verdict: Verdict) -> None:
    """Check that a loss on the replies reaches every matrix that it reaches in the model's own pass, and as it does."""
    weights = torch.randn(rollout.mask.shape, generator=torch.Generator().manual_seed(5))
    replies = rollout.mask.shape[1]
    with policy.training():
        logits = policy.logits(policy.hidden_states(rollout.ids, rollout.attention))[:, -replies - 1 : -1]
        chosen = torch.log_softmax(logits.float(), -1).gather(-1, rollout.tokens[..., None])[..., 0]
        (chosen * weights)[rollout.mask].sum().backward()
    loss = torch.zeros(())
    for i in range(len(rollout.ids)):
        row, n = rollout.ids[i][rollout.attention[i].bool()], int(rollout.mask[i].sum())
        own = log_probs(twin.get_base_model(), row)[-n - 1 : -1]
        loss = loss + (own.gather(-1, row[-n:, None])[:, 0] * weights[i, :n]).sum()
    loss.backward()
    theirs = {name: p.grad for name, p in twin.named_parameters() if p.requires_grad}
    ours = {name: p.grad for name, p in policy.trainable().items()}
    reached = {name for name, grad in theirs.items() if grad is not None and bool(grad.any())}
    lost = sorted(name for name in reached if ours[name] is None or not bool(ours[name].any()))
    if lost:
        verdict.faults.append(f"no gradient reaches {len(lost)} of {len(reached)} matrices: {', '.join(lost[:3])}")
    second = [name for name in ours if "lora_B" in name]
    verdict.adapters = len(second)
    verdict.dead = tuple(sorted(set(second) - reached))
    gaps = [
        float((ours[name] - theirs[name]).norm() / theirs[name].norm())
        for name in reached - set(lost)
        if float(theirs[name].norm()) > 1e-3 * max(float(theirs[other].norm()) for other in reached)
    ]
    verdict.gaps["gradients"] = max(gaps, default=0.0)
    if not verdict.gaps["gradients"] <= 1e-2:
        verdict.faults.append(f"gradients: {verdict.gaps['gradients']:.3g}")


def table(verdicts: list[Verdict]) -> str:
    """Return the verdicts as a Markdown table, with their counts."""
    counts = {says: sum(v.says == says for v in verdicts) for says in ("agrees", "refused", "not built", "DIFFERS")}
    lines = [
        f"{len(verdicts)} model types: " + ", ".join(f"{n} {says}" for says, n in counts.items()),
        "",
        "Largest differences: log-probabilities of policy and reference (nats), noise beyond the drawn token's "
        "interval, gradients (share of the norm).",
        "",
        "| model type | class | verdict | reason, or way | logits | reference | sampling | gradients | dead |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for v in verdicts:
        gaps = [f"{v.gaps[g]:.0e}" if g in v.gaps else "" for g in ("logits", "reference", "sampling", "gradients")]
        said = "; ".join([*v.faults, v.reason or v.path]) if v.faults else v.reason or v.path
        dead = f"{len(v.dead)} of {v.adapters}" if v.dead else ""
        if v.says == "agrees" and "gradient checkpointing" in " ".join(v.notices):
            said = ", ".join(filter(None, [said, "gradient_checkpointing=false"]))
        cells = [v.model_type, v.name, v.says, " ".join(said.split()).replace("|", "\\|"), *gaps, dead]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def each(model_types: tuple[str, ...]) -> Iterator[Verdict]:
    """Examine each type; what is raised is its verdict."""
    for model_type in model_types:
        try:
            yield examine(model_type)
        except Exception as fault:  # one type's failure must not hide the others'
            frame = traceback.extract_tb(fault.__traceback__)[-1]
            where = f"{Path(frame.filename).name}:{frame.lineno}"
            yield Verdict(model_type, says="DIFFERS", faults=[f"{type(fault).__name__}: {fault} ({where})"])


def main() -> None:
    """Sweep the types that are named, or all, and write the table."""
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as caches:
        os.environ["XDG_CACHE_HOME"] = caches
        verdicts = []
        for v in each(tuple(sys.argv[1:]) or MODEL_TYPES):
            verdicts.append(v)
            told = f"{v.says:9} {v.model_type} [{v.seconds:.1f}s] {v.reason or v.path} {'; '.join(v.faults)}"
            print(told, f"dead {len(v.dead)}/{v.adapters}" if v.dead else "", flush=True)
    out = Path("build/sweep.md")
    out.parent.mkdir(exist_ok=True)
    out.write_text(table(verdicts), encoding="utf-8")


if __name__ == "__main__":
    main()
