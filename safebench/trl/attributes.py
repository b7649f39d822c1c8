"""The public attributes of TRL's trainer: those that are there beside training, and those that are not, with advice."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, Trainer
from transformers.trainer_pt_utils import log_metrics, metrics_format, save_metrics

from safebench.errors import UsageError
from safebench.trl.data import Rows
from safebench.trl.optimizers import decayed
from safebench.trl.parts import Parts
from safebench.world import noise
from safebench.world.rollout import encode

_OPTIMIZERS = "pass optimizers=(optimizer, schedule) to the trainer; `optimizer` and `lr_scheduler` are there"
_LOSS = "a step has no call of its own for it: train() makes all steps, and a callback acts between them"
_EVALUATION = "evaluate(dataset) measures replies, generate_completions() returns them"
_FLOPS = "operations are not counted; the log has tokens and their speed (speed/tokens_per_second)"

ABSENT: dict[str, str] = {
    **dict.fromkeys(("create_optimizer", "create_scheduler", "create_optimizer_and_scheduler"), _OPTIMIZERS),
    "optimizer_cls_and_kwargs": _OPTIMIZERS,
    **dict.fromkeys(("compute_loss", "training_step", "compute_loss_context_manager", "loss_is_scaled_for_ga"), _LOSS),
    "autocast_smart_context_manager": "args.bf16 says whether bfloat16 is computed in",
    **dict.fromkeys(("evaluation_loop", "prediction_step", "predict"), _EVALUATION),
    **dict.fromkeys(("current_flos", "floating_point_ops", "store_flos"), _FLOPS),
    "call_model_init": "pass the model itself to the trainer",
    "create_accelerator_and_postprocess": "`accelerator` is there from the start",
    "hyperparameter_search": "make a trainer for each choice",
    "hp_search_backend": "make a trainer for each choice",
    "init_hf_repo": "push_to_hub() creates the repository",
    "set_initial_training_values": "the sizes are in args (batch_size, num_total_batches, …) and in state",
    "local_seed": "random numbers follow from args.seed, step and row, whatever the process",
    "tokenizer": "its name is processing_class",
    "model_wrapped": "models are not wrapped; use `model`, `policy_model` or `value_model`",
    "deepspeed": "processes share the data only (accelerate launch)",
}
"""Attributes of TRL 1.12.0's trainer, transformers' below it included, that are not there, and what to use instead."""


FIXED = (
    *("args", "processing_class", "data_collator", "train_dataset", "eval_dataset", "optimizer", "lr_scheduler"),
    *("model", "policy_model", "ref_model", "reward_model", "value_model"),
)
"""Attributes that the loop was made of: setting another one later would not reach it."""


class Features(Dataset[dict[str, Any]]):
    """The prompts of a data set as token ids, as they are read."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.rows.tokens(index)}


class Attributes(Parts):
    """What scripts ask of a trainer beside training: sizes, loaders of the prompts, metrics as files."""

    log_metrics = log_metrics
    save_metrics = save_metrics
    metrics_format = staticmethod(metrics_format)
    get_optimizer_cls_and_kwargs = staticmethod(Trainer.get_optimizer_cls_and_kwargs)
    is_deepspeed_enabled = False
    is_fsdp_enabled = False

    def __init_subclass__(cls, **more: Any) -> None:
        """Tell a subclass that overrides what is not there: it would never be called."""
        super().__init_subclass__(**more)
        if idle := [f"{name} ({ABSENT[name]})" for name in vars(cls) if name in ABSENT]:
            warnings.warn(f"{cls.__name__} defines what is never called: {'; '.join(idle)}", UserWarning, stacklevel=2)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse to set what nothing would read."""
        follows = isinstance(getattr(type(self), name, None), property)
        fixed = self._made and name in FIXED and value is not getattr(self, name)
        # Scripts put the policy in the place of both before they save.
        if name in ABSENT or follows or (fixed and not (name == "model" and value is self.policy_model)):
            hint = f"Instead: {ABSENT[name]}." if name in ABSENT else "Give the trainer what it follows from."
            raise UsageError(f"setting {name} of a trainer does nothing: it was made with what it was given", hint)
        super().__setattr__(name, value)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Say what to use in the place of what TRL's trainer has and this one has not."""
            advice = f", as TRL's has: {ABSENT[name]}" if name in ABSENT else ""
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{advice}", name=name, obj=self)

    @property
    def stop_token_id(self) -> int | None:
        """The token that ends a reply, None where none does."""
        stops = self._world.policy.stop_ids
        return stops[0] if stops else None

    @property
    def is_peft_model(self) -> bool:
        """Whether the policy is a ``PeftModel``."""
        return isinstance(self.policy_model, PeftModel)

    @property
    def model_adapter_name(self) -> str | None:
        """The name of the trained adapter, where ``args`` has one."""
        found: str | None = self.args.model_adapter_name
        return found

    @property
    def ref_adapter_name(self) -> str | None:
        """The name of the reference's adapter, where ``args`` has one."""
        found: str | None = self.args.ref_adapter_name
        return found

    @property
    def train_dataset_len(self) -> int:
        """Rows of the training data."""
        return self._rows.size

    @property
    def local_dataloader_batch_size(self) -> int:
        """Replies per batch on this process."""
        return int(self.args.local_batch_size)

    @property
    def sample_generations_freq(self) -> int:
        """Batches between two looks at sample replies; 0 where none are shown."""
        times = int(self.args.num_sample_generations)
        return max(1, int(self.args.num_total_batches) // times) if times > 0 else 0

    @contextlib.contextmanager
    def null_ref_context(self) -> Iterator[None]:
        """Within this context the policy's adapters are the reference's; a reference of its own is ``ref_model``."""
        if isinstance(self._world.policy.reference, PreTrainedModel):
            yield
            return
        with self._world.policy.as_reference():
            yield

    @property
    def dataloader(self) -> DataLoader[dict[str, Any]]:
        """``get_train_dataloader()``."""
        return self.get_train_dataloader()

    @property
    def eval_dataloader(self) -> DataLoader[dict[str, Any]] | None:
        """``get_eval_dataloader()``, None without held-out prompts."""
        return self.get_eval_dataloader() if self._heldout else None

    def get_train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return this process's prompts of the first pass over the data, in the order and batches of training."""
        args, size = self.args, self._rows.size
        steps = range(1, max(1, size // args.batch_size) + 1)
        rows = self._processes.rows(args.batch_size)
        batches = [noise.batch_indices(args.seed, step, args.batch_size, size) for step in steps]
        return self._loader(self._rows, [batch[row] for batch in batches for row in rows], args.local_batch_size)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[dict[str, Any]]:
        """Return this process's held-out prompts: of ``eval_dataset``, a data set or the name of one given before."""
        named = self._named(eval_dataset)
        if len(named) != 1:
            names = ", ".join(named) or "none"
            raise UsageError(f"one data set is needed, and there are: {names}", "Name or give it as eval_dataset.")
        (rows,) = named.values()
        share = range(self._processes.rank, rows.size, self._processes.count)
        return self._loader(rows, share, self.args.per_device_eval_batch_size)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[dict[str, Any]]:
        """Return this process's prompts of ``test_dataset``."""
        return self.get_eval_dataloader(test_dataset)

    def _loader(self, rows: Rows, order: Iterable[int], size: int) -> DataLoader[dict[str, Any]]:
        return DataLoader(Features(rows), batch_size=size, sampler=list(order), collate_fn=self._padded)

    def _padded(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return ``input_ids`` and ``attention_mask`` [b, P], padded on the left as in a rollout."""
        limit, pad = self.settings.prompts.max_tokens, int(self._world.policy.tokenizer.pad_token_id)
        found = encode([], [feature["input_ids"] for feature in features], limit, pad, torch.device("cpu"))
        return {"input_ids": found.ids, "attention_mask": found.attention}

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: Any = None
    ) -> tuple[list[Any], None]:
        """Return up to ``num_batches`` batches of a loader's iterator; there are no labels to count."""
        return list(islice(epoch_iterator, num_batches)), None

    def num_examples(self, dataloader: DataLoader[Any]) -> int:
        """Return the rows of a loader's data set."""
        return len(dataloader.dataset)  # type: ignore[arg-type]

    def get_learning_rates(self) -> list[float]:
        """Return the present learning rate of each group of weights."""
        return [float(group["lr"]) for group in self._loop.updater.optimizer.param_groups]

    def get_num_trainable_parameters(self) -> int:
        """Return how many numbers are trained, of policy and critic."""
        owners = [*self._world.policy.trainable().values(), *self._critic.parameters()]
        return sum(p.numel() for p in owners)

    def get_optimizer_group(self, param: nn.Parameter | None = None) -> Any:
        """Return the group of a weight, or the weights of each group."""
        groups = self._loop.updater.optimizer.param_groups
        if param is None:
            return [group["params"] for group in groups]
        return next((group for group in groups if any(p is param for p in group["params"])), None)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the names of the weights of ``model`` that ``weight_decay`` acts on."""
        return decayed(model)

    def get_total_train_batch_size(self, args: Any) -> int:
        """Return the replies per batch, all processes."""
        return int(args.batch_size)

    def get_tp_size(self) -> int:
        """Return 1: processes share the data only."""
        return 1

    get_cp_size = get_sp_size = get_tp_size

    def end(self) -> None:
        """Leave the group of processes; nothing that needs the others works after it."""
        self.accelerator.end_training()
