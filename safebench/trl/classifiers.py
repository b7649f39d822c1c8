"""Sequence classifiers read as TRL's trainer reads them: a body gives a state per token, ``score`` a number each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from safebench.errors import BadResource
from safebench.trl.objects import placed, refuse_learned_prompts, title, unwrapped
from safebench.world.forward import no_dropout, positions
from safebench.world.loading import naming
from safebench.world.policy import Policy

WAY_OUT = {
    "reward_model": "Pass a sequence classifier with one label and the policy's tokenizer, a function of texts that "
    "calls the model with its own tokenizer, or its folder's name.",
    "value_model": "Pass value_model=None: the critic then sits on the policy's own states.",
}
"""What to do with a classifier that cannot be read token by token, by the argument that it came as."""


class Body(nn.Module):
    """The body of a classifier; what it raises names the classifier."""

    def __init__(self, what: str, hint: str, body: nn.Module) -> None:
        super().__init__()
        self.what, self.hint, self.body = what, hint, body

    def forward(self, **inputs: Any) -> BaseModelOutput:
        """Return the last hidden states [b, T, h] as ``last_hidden_state``."""
        with naming(f"the forward pass of {self.what}", self.hint):
            out = self.body(**inputs)
            states = getattr(out, "last_hidden_state", None)
            if states is None:
                # A body with an output layer of its own, as TRL reads it.
                states = self.body(**inputs, output_hidden_states=True, return_dict=True).hidden_states[-1]
        return BaseModelOutput(last_hidden_state=states)


class Score(nn.Module):
    """What makes one number of a state, itself and not a copy, in float32 at least.

    ``score`` may be a method of the classifier: its weights are then all that are beside the body.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.score = classifier.score
        if not isinstance(self.score, nn.Module):
            beside = unwrapped(classifier.model).children()
            self.layers = nn.ModuleList(layer for layer in beside if layer is not classifier.body.body)

    def forward(self, states: Tensor) -> Tensor:
        """Return one number per state, [..., 1], of [..., h]."""
        found: Tensor = self.score(states)
        return found.to(torch.promote_types(found.dtype, torch.float32))


class Classifier:
    """A classifier taken apart and tried on a few tokens; adapters on body and score act, whoever made them.

    ``role``: the trainer's argument that it came as. Raises ``BadResource`` where it has no ``score``, more than one
    number per state, another vocabulary than the policy's, or where its own forward pass says something else.
    """

    def __init__(self, role: str, model: Any, policy: Policy) -> None:
        self.role, self.model, self.what, self.hint = role, model, title(role, model), WAY_OUT[role]
        refuse_learned_prompts(role, model)
        inner = unwrapped(model)
        body = getattr(inner, str(getattr(inner, "base_model_prefix", "")), None)
        score = getattr(inner, "score", None)
        if not isinstance(body, nn.Module) or not callable(score):
            raise BadResource(f"{self.what} {_lack(inner, body)}", self.hint)
        self.score: Any = score
        self.body = Body(self.what, self.hint, body)
        self._refuse_other_tokens(policy)
        placed(role, model, policy.device)
        no_dropout(model)
        model.eval()
        self._try(inner, policy.device)

    def values(self, ids: Tensor, attention: Tensor) -> Tensor:
        """Return what ``score`` makes of each token's state, [b, T], of ids padded on the left, [b, T]."""
        states = self.body(
            input_ids=ids, attention_mask=attention, position_ids=positions(attention), use_cache=False
        ).last_hidden_state
        with naming(f"`score` of {self.what}", self.hint):
            found: Tensor = self.score(states)
        if found.shape != (*ids.shape, 1):
            many = f"{found.shape[-1]} scores" if found.shape[:-1] == ids.shape else f"the shape {list(found.shape)}"
            raise BadResource(
                f"{self.what} gives {many} for {list(ids.shape)} tokens, where one score per token is needed",
                f"Load it with num_labels=1. {self.hint}",
            )
        return found.squeeze(-1)

    def _refuse_other_tokens(self, policy: Policy) -> None:
        """A classifier reads the policy's ids; with a smaller vocabulary it must be made for another tokenizer."""
        if not hasattr(self.model, "get_input_embeddings"):
            return
        with naming(f"the token embedding of {self.what}", self.hint):
            known = int(self.model.get_input_embeddings().weight.shape[0])
        needed = min(policy.vocabulary, len(policy.tokenizer))
        if known < needed:
            raise BadResource(
                f"{self.what} knows {known} tokens, the policy's tokenizer has {needed}: it cannot read its ids",
                self.hint,
            )

    @torch.no_grad()
    def _try(self, inner: Any, device: torch.device) -> None:
        """Score three tokens, and compare with what a classifier of transformers says of them itself."""
        pad = getattr(getattr(inner, "config", None), "pad_token_id", None)
        ids = torch.tensor([[i for i in range(4) if i != pad][:3]], device=device)
        attention = torch.ones_like(ids)
        ours = self.values(ids, attention)[0, -1]
        if not torch.isfinite(ours):
            raise BadResource(f"{self.what} gives {float(ours)} for three plain tokens", "Its weights are damaged.")
        if not isinstance(inner, PreTrainedModel) or type(inner).forward is nn.Module.forward:
            return
        with naming(f"the forward pass of {self.what}", self.hint):
            logits = getattr(inner(input_ids=ids, attention_mask=attention), "logits", None)
        if not isinstance(logits, Tensor):
            return
        own = logits.flatten()[-1]
        # Rounding depends on the kernel; a scale, a cap or a pooling of the model's own is larger by far.
        limit = (1e-3 if ours.dtype == torch.float32 else 5e-2) * max(1.0, abs(float(own)))
        if not abs(float(own) - float(ours)) <= limit:
            raise BadResource(
                f"{self.what} scores three tokens {float(own):.6g}, and `score` of its last state is "
                f"{float(ours):.6g}: TRL's trainer, and ours, would read another number than the model's",
                self.hint,
            )


def _lack(inner: Any, body: Any) -> str:
    """Say why a model cannot be read as TRL's trainer reads it."""
    if not isinstance(body, nn.Module):
        return "has no body under its `base_model_prefix`: it is no sequence classifier of transformers"
    heads = [f"`{name}` ({type(m).__name__})" for name, m in inner.named_children() if m is not body]
    instead = f"; beside its body it has {', '.join(heads)}" if heads else ""
    return f"has no `score` that reads the state of a token, which TRL's trainer needs{instead}"
