"""Implements TRL 1.12.0's PPOTrainer interface on this package's loop, for PPO and for SAFE.

It departs from TRL's trainer as follows:
1. every field of the configuration takes effect, is refused, or is named in a warning (``config.py``);
2. checkpoints hold the whole state, critic included, and a resumed run continues as if it had not stopped;
3. without a value model the critic uses the policy's own hidden states, with half the forward passes;
4. the reference of a policy with a trained adapter is that adapter as it was given;
5. ``model`` has ``policy`` and ``value_model`` as TRL's has, and acts as the policy in all other respects.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas
import torch
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, Trainer
from transformers.trainer_callback import ExportableState
from transformers.trainer_pt_utils import log_metrics, metrics_format, save_metrics
from transformers.trainer_utils import HubStrategy, SaveStrategy, TrainOutput

from safebench.config.schema import Settings
from safebench.errors import Instability, UsageError
from safebench.models import seeding
from safebench.models.assemble import World
from safebench.models.generation import encode, sample
from safebench.models.libraries import naming
from safebench.models.rewards import score
from safebench.training.distributed import Processes
from safebench.training.evaluate import Evaluation, evaluate
from safebench.trl import logs, saving
from safebench.trl.config import is_safe
from safebench.trl.data import Rows, read_prompts
from safebench.trl.parts import EpisodeState, Parts, decayed

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
"""Attributes of TRL 1.12.0's trainer and of transformers' below it that are missing here, and what to use instead."""


FIXED = (
    *("args", "processing_class", "data_collator", "train_dataset", "eval_dataset", "optimizer", "lr_scheduler"),
    *("model", "policy_model", "ref_model", "reward_model", "value_model"),
)
"""Attributes that the loop was built from: setting one of them later would not affect the loop."""


class Features(Dataset[dict[str, Any]]):
    """The prompts of a data set as the token ids that the policy reads."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.rows.tokens(index)}


class Attributes(Parts):
    """Attributes and methods that scripts use beside training: sizes, loaders of the prompts, metrics as files."""

    log_metrics = log_metrics
    save_metrics = save_metrics
    metrics_format = staticmethod(metrics_format)
    get_optimizer_cls_and_kwargs = staticmethod(Trainer.get_optimizer_cls_and_kwargs)
    is_deepspeed_enabled = False
    is_fsdp_enabled = False

    def __init_subclass__(cls, **more: Any) -> None:
        """Warn of a subclass that defines an attribute missing here: it would never be called."""
        super().__init_subclass__(**more)
        if idle := [f"{name} ({ABSENT[name]})" for name in vars(cls) if name in ABSENT]:
            warnings.warn(f"{cls.__name__} defines what is never called: {'; '.join(idle)}", UserWarning, stacklevel=2)

    def __setattr__(self, name: str, value: Any) -> None:
        """Raise ``UsageError`` for an assignment that would have no effect."""
        follows = isinstance(getattr(type(self), name, None), property)
        fixed = self._made and name in FIXED and value is not getattr(self, name)
        # Scripts assign the policy to ``model``, which holds policy and value model, before they save.
        if name in ABSENT or follows or (fixed and not (name == "model" and value is self.policy_model)):
            hint = f"Instead: {ABSENT[name]}." if name in ABSENT else "Give the trainer what it follows from."
            raise UsageError(f"setting {name} of a trainer does nothing: it was made with what it was given", hint)
        super().__setattr__(name, value)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Raise ``AttributeError`` with what to use instead of an attribute that only TRL's trainer has."""
            advice = f", as TRL's has: {ABSENT[name]}" if name in ABSENT else ""
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{advice}", name=name, obj=self)

    @property
    def stop_token_id(self) -> int | None:
        """The token that ends a reply, or None if no token does."""
        stops = self._world.policy.stop_ids
        return stops[0] if stops else None

    @property
    def is_peft_model(self) -> bool:
        """Whether the policy is a ``PeftModel``."""
        return isinstance(self.policy_model, PeftModel)

    @property
    def model_adapter_name(self) -> str | None:
        """The name of the trained adapter, or None if ``args`` has none."""
        found: str | None = self.args.model_adapter_name
        return found

    @property
    def ref_adapter_name(self) -> str | None:
        """The name of the reference's adapter, or None if ``args`` has none."""
        found: str | None = self.args.ref_adapter_name
        return found

    @property
    def train_dataset_len(self) -> int:
        """Number of rows of the training data."""
        return self._rows.size

    @property
    def local_dataloader_batch_size(self) -> int:
        """Replies per batch on this process."""
        return int(self.args.local_batch_size)

    @property
    def sample_generations_freq(self) -> int:
        """Batches between two displays of sample replies; 0 if none are shown."""
        times = int(self.args.num_sample_generations)
        return max(1, int(self.args.num_total_batches) // times) if times > 0 else 0

    @contextlib.contextmanager
    def null_ref_context(self) -> Iterator[None]:
        """Activate the reference's adapters within this context; a separate reference model is ``ref_model``."""
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
        """``get_eval_dataloader()``, or None without held-out prompts."""
        return self.get_eval_dataloader() if self._heldout else None

    def get_train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return this process's prompts of the first pass over the data, in the order and batches of training."""
        args, size = self.args, self._rows.size
        steps = range(1, max(1, size // args.batch_size) + 1)
        rows = self._processes.rows(args.batch_size)
        batches = [seeding.batch_indices(args.seed, step, args.batch_size, size) for step in steps]
        return self._loader(self._rows, [batch[row] for batch in batches for row in rows], args.local_batch_size)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[dict[str, Any]]:
        """Return this process's prompts of ``eval_dataset``, a data set or the name of one given before."""
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
        """Return up to ``num_batches`` batches of a loader's iterator, and None: there are no labels to count."""
        return list(islice(epoch_iterator, num_batches)), None

    def num_examples(self, dataloader: DataLoader[Any]) -> int:
        """Return the number of rows of a loader's data set."""
        return len(dataloader.dataset)  # type: ignore[arg-type]

    def get_learning_rates(self) -> list[float]:
        """Return the current learning rate of each group of weights."""
        return [float(group["lr"]) for group in self._loop.updater.optimizer.param_groups]

    def get_num_trainable_parameters(self) -> int:
        """Return the number of trained parameters of policy and critic."""
        owners = [*self._world.policy.trainable().values(), *self._critic.parameters()]
        return sum(p.numel() for p in owners)

    def get_optimizer_group(self, param: nn.Parameter | None = None) -> Any:
        """Return the group of a weight or, without ``param``, the weights of each group."""
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
        """Leave the group of processes; nothing that needs the other processes works afterwards."""
        self.accelerator.end_training()


NEARLY_GREEDY = 0.01
"""Sampling temperature of the replies that are shown, as in TRL."""


def measure_replies(settings: Settings, world: World, processes: Processes, rows: Rows, chunk: int) -> dict[str, float]:
    """Return reward, exact KL, entropy, length and variety of the replies to ``rows``, by their names in our schema.

    The replies are sampled at temperature 1 with the same noise at every step. KL and entropy are in nats per token.
    """
    found = _evaluate(settings, world, processes, rows, chunk)
    return {key.removeprefix("eval/"): value for key, value in found.columns.items() if value is not None}


def spread_of_scores(settings: Settings, world: World, processes: Processes, rows: Rows, chunk: int) -> float:
    """Return sigma_0, the standard deviation of the current policy's rewards on ``rows``; 1 if it is 0."""
    return _evaluate(settings, world, processes, rows, chunk).reward_std or 1.0


def _evaluate(settings: Settings, world: World, processes: Processes, rows: Rows, chunk: int) -> Evaluation:
    rollout = settings.rollout.model_copy(update={"chunk": chunk})
    update = settings.update.model_copy(update={"microbatch": chunk})
    settings = settings.model_copy(update={"rollout": rollout, "update": update})
    return evaluate(settings, dataclasses.replace(world, prompts=read_prompts(rows, rows)), processes, chunk)


def complete_prompts(
    settings: Settings, world: World, processes: Processes, rows: Rows, chunk: int, limit: int | None
) -> pandas.DataFrame:
    """Return prompts, nearly greedy replies and their scores, for the first ``limit`` rows or for all."""
    policy = world.policy
    count = rows.size if limit is None else min(limit, rows.size)
    share = range(processes.rank, count, processes.count)
    found: list[dict[str, Any]] = []
    for start in range(0, len(share), chunk):
        part = share[start : start + chunk]
        prompts = encode(
            [rows.text(i) for i in part],
            [rows.tokens(i) for i in part],
            settings.prompts.max_tokens,
            int(policy.tokenizer.pad_token_id),
            policy.device,
        )
        draws = seeding.uniforms("completions", settings.seed, 0, part, settings.rollout.reply_tokens)
        rollout = sample(policy, prompts, draws, NEARLY_GREEDY)
        scores = score(world.reward, rollout).tolist()
        for row, prompt, reply, value in zip(part, rollout.prompts, rollout.replies, scores, strict=True):
            found.append({"row": row, "query": str(prompt), "model response": reply, "score": value})
    ordered = sorted(processes.gather(found), key=lambda item: int(item["row"]))
    return pandas.DataFrame(ordered, columns=["query", "model response", "score"])


def show_replies(frame: pandas.DataFrame, count: int = 5) -> None:
    """Print the first replies as a table."""
    table = Table(show_lines=True)
    for column in frame.columns:
        table.add_column(str(column))
    for _, row in frame.head(count).iterrows():
        table.add_row(*(str(value) for value in row))
    Console().print(table)


class Reporting(Attributes):
    """Logs, evaluates and shows sample replies."""

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Add an entry to ``state.log_history`` and hand it to the callbacks."""
        if self.state.epoch is not None:
            logs["epoch"] = self.state.epoch
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def _log_steps(self) -> None:
        if self._steps:
            entry, self._steps = logs.entry(self._steps), []
            self.log(dict(entry))
        self.control.should_log = False

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Reply to the held-out prompts at temperature 1 with noise from the seed; log and return the measures.

        Keys are ``eval_reward``, ``eval_kl`` (exact, nats per token), ``eval_entropy``, ``eval_length``,
        ``eval_distinct``, ``eval_distinct_2``, ``eval_first_perplexity``; for a dictionary of data sets
        ``eval_<name>_reward`` and so on.
        """
        named = self._named(eval_dataset)
        if not named:
            raise UsageError("there is nothing to evaluate on", "Give eval_dataset to the trainer, or to evaluate().")
        found: dict[str, float] = {}
        for name, rows in named.items():
            prefix = f"{metric_key_prefix}_{name}" if name else metric_key_prefix
            measured = measure_replies(
                self.settings, self._world, self._processes, rows, self.args.per_device_eval_batch_size
            )
            found |= {f"{prefix}_{key}": value for key, value in measured.items() if key not in (ignore_keys or ())}
        self.log(dict(found))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def _evaluate_all(self) -> None:
        metrics = self.evaluate()
        if self._is_best(metrics) and self.args.save_strategy == SaveStrategy.BEST:
            self.control.should_save = True

    def _is_best(self, metrics: Mapping[str, float]) -> bool:
        wanted = self.args.metric_for_best_model
        if wanted is None:
            return False
        name = wanted if wanted.startswith("eval_") else f"eval_{wanted}"
        if name not in metrics:
            raise UsageError(f"metric_for_best_model is {wanted!r}; there are {', '.join(metrics)}")
        value, best = metrics[name], self.state.best_metric
        if best is not None and not (value > best if self.args.greater_is_better else value < best):
            return False
        self.state.best_metric, self.state.best_global_step = value, self.state.global_step
        return True

    def generate_completions(self, sampling: bool = False) -> pandas.DataFrame | None:
        """Print nearly greedy replies to held-out prompts with their scores, and return them; None without prompts.

        ``sampling``: reply only to as many prompts as fit one batch, as during training.
        """
        if not self._heldout:
            return None
        size = self.args.per_device_eval_batch_size
        frame = pandas.concat(
            [
                complete_prompts(self.settings, self._world, self._processes, rows, size, size if sampling else None)
                for rows in self._heldout.values()
            ],
            ignore_index=True,
        )
        if self.is_world_process_zero():
            show_replies(frame)
            self._send_table(frame)
        return frame

    def _send_table(self, frame: pandas.DataFrame) -> None:
        """Send the replies to Weights & Biases if its callback is active."""
        for callback in self.callback_handler.callbacks:
            wandb = getattr(callback, "_wandb", None)
            if wandb is not None and wandb.run is not None:
                wandb.log({"completions": wandb.Table(dataframe=frame)})

    def _show_replies(self) -> None:
        every = self.sample_generations_freq
        if every and self._heldout and (self.state.global_step - 1) % every == 0:
            self.generate_completions(sampling=True)


class Storing(Reporting):
    """Saves, restores and uploads the model and the training state."""

    def save_model(self, output_dir: str | Path | None = None, _internal_call: bool = False) -> None:
        """Write the policy (its adapter, if it has one) and the tokenizer into a folder, ``output_dir`` by default.

        Plain transformers and peft load it. With ``push_to_hub`` it is uploaded too, unless the call is internal.
        """
        folder = output_dir or self.args.output_dir
        if self._processes.main:
            saving.save_model(folder, self.policy_model, self.processing_class, self.args)
        self._processes.wait()
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save")

    def save_state(self) -> None:
        """Write ``trainer_state.json`` into ``output_dir``."""
        if self._processes.main:
            self.state.save_to_json(str(Path(self.args.output_dir) / saving.STATE))

    def _save_checkpoint(self) -> None:
        folder = saving.folder_of(self.args.output_dir, self.state.global_step)
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(folder)
        self.save_model(folder, _internal_call=True)
        if self._processes.main:
            self._keep_callbacks()
            self.create_model_card()
            if self.args.save_only_model:
                self.state.save_to_json(str(folder / saving.STATE))
            else:
                state = {"loop": self._loop.state(), "steps": [dict(row) for row in self._steps]}
                saving.save_state(folder, self.state.global_step, self.state, state)
            saving.rotate(self.args.output_dir, self.args.save_total_limit, self.state.best_model_checkpoint)
        self._processes.wait()
        if self.args.push_to_hub and self.args.hub_strategy != HubStrategy.END:
            self.push_to_hub(commit_message=f"Training in progress, step {self.state.global_step}", blocking=False)

    def _keep_callbacks(self) -> None:
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                self.state.stateful_callbacks[type(callback).__name__] = callback.state()

    def _resume(self, folder: Path) -> None:
        state = saving.load_state(folder)
        with naming(f"{folder / saving.STATE}", "Name another checkpoint: this one is damaged."):
            self.state = EpisodeState.load_from_json(str(folder / saving.STATE))
        self.state.is_local_process_zero = self.is_local_process_zero()
        self.state.is_world_process_zero = self.is_world_process_zero()
        hint = "Resume with the models, adapters and sizes that it was made with."
        with naming(f"the checkpoint {folder}, restored", hint):
            self._loop.restore(state["loop"])
        self._steps = list(state["steps"])
        if self.args.restore_callback_states_from_checkpoint:
            self._restore_callbacks()

    def _restore_callbacks(self) -> None:
        for callback in self.callback_handler.callbacks:
            kept = self.state.stateful_callbacks.get(type(callback).__name__)
            if isinstance(callback, ExportableState) and isinstance(kept, dict):
                for name, value in {**kept.get("args", {}), **kept.get("attributes", {})}.items():
                    setattr(callback, name, value)

    def _load_best(self, folder: Path) -> None:
        weights = saving.load_state(folder)["loop"]["adapter"]
        with torch.no_grad():
            for name, parameter in self._world.policy.trainable().items():
                parameter.copy_(weights[name])

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a model card, README.md, into ``output_dir``."""
        if not self._processes.main:
            return
        extra = [tags] if isinstance(tags, str) else list(tags or ())
        args = self.args
        settings = [
            f"{name}: {getattr(args, name)}"
            for name in ("learning_rate", "batch_size", "num_ppo_epochs", "kl_coef", "response_length", "seed")
        ]
        base = str(self._world.policy.base.config._name_or_path or "") or None
        name = model_name or saving.repository(args).split("/")[-1]
        made = saving.card(name, base, dataset_name, [*self._tags, *extra], type(self).__name__, settings)
        made.save(Path(args.output_dir) / "README.md")

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Upload model, tokenizer and card; ``kwargs`` go to ``create_model_card``. No upload is made in any other way.

        With ``hub_strategy`` ``checkpoint`` or ``all_checkpoints`` the checkpoints are uploaded too.
        """
        args = self.args
        self.callback_handler.on_push_begin(args, self.state, self.control)
        self.save_model(_internal_call=True)
        if not self._processes.main:
            return None
        self.create_model_card(**kwargs)
        with_checkpoints = args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)
        self.hub_model_id = saving.repository(args)
        return saving.upload(
            args.output_dir,
            self.hub_model_id,
            message=commit_message or "End of training",
            token=token or args.hub_token,
            private=args.hub_private_repo if private is None else private,
            revision=revision or args.hub_revision,
            wait=blocking,
            leave_out=[] if with_checkpoints else ["checkpoint-*"],
        )


SIGMA_ROWS = 128
"""Number of prompts on which the spread of the initial policy's rewards is measured, for SAFE's controller."""


class PPOTrainer(Storing):
    """PPO with TRL's interface.

    ``model``: the policy, a transformers model or PeftModel. ``ref_model``: the reference; None for a copy of the
    policy or of its adapter as given, or with ``peft_config`` the policy without adapter. ``reward_model``: a
    sequence classifier that reads the policy's token ids, a function of texts (``parts.FunctionReward``), or a
    name from `safebench list rewards`. ``value_model``: a sequence classifier whose body and score become the critic
    and are trained if they require gradients; None for a critic on the policy's own states. ``train_dataset``,
    ``eval_dataset`` (or a dictionary of them): rows with ``input_ids``, a text or a conversation (``data.Rows``).
    ``optimizers``: an optimizer over the policy and a schedule that moves once per batch; None for those that ``args``
    name. Raises ``UsageError`` and ``MissingResource`` for what cannot work, before anything is trained.
    """

    def train(self, resume_from_checkpoint: str | Path | bool | None = None) -> TrainOutput:
        """Train to the end, or until a callback stops the training.

        ``resume_from_checkpoint``: a folder, or True for the newest whole one under ``output_dir``. Without it,
        ``args.resume_from_checkpoint`` is used; without that too, a new run begins. Raises ``Instability`` if a number
        stops being finite, with the weights as they were before that step, and ``BadResource`` for a reward that is no
        number.
        """
        wanted = self.args.resume_from_checkpoint if resume_from_checkpoint is None else resume_from_checkpoint
        self._begin(wanted)
        started, begun = time.perf_counter(), self.state.episode
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
        if self.args.eval_on_start and self.state.global_step == 0:
            self._evaluate_all()
        self.control = self.callback_handler.on_epoch_begin(self.args, self.state, self.control)
        while self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            self._step(started, begun)
        self._end()
        return self._outcome(started, begun)

    def _begin(self, wanted: str | Path | bool | None) -> None:
        if self._loop.step_number:
            self._loop = self._new_loop()
            self.callback_handler.optimizer, self.callback_handler.lr_scheduler = self.optimizer, self.lr_scheduler
        self._steps = []
        if wanted:
            self._resume(saving.find_checkpoint(self.args.output_dir, wanted))
        else:
            self.state = EpisodeState(
                is_local_process_zero=self.is_local_process_zero(), is_world_process_zero=self.is_world_process_zero()
            )
            self._measure_spread()
        self.state.max_steps = self.args.num_total_batches
        self.state.num_train_epochs = self.args.total_episodes / self._rows.size
        self.state.train_batch_size = self.args.per_device_train_batch_size
        self.state.compute_steps(self.args, self.state.max_steps)
        self._reward_sees_state()

    def _measure_spread(self) -> None:
        """Do nothing: PPO does not use sigma_0."""

    def _step(self, started: float, begun: int) -> None:
        self.control = self.callback_handler.on_step_begin(self.args, self.state, self.control)
        row, _ = self._loop.step()
        before = int((self.state.epoch or 0.0) + 1e-9)
        self.state.global_step += 1
        self.state.episode += self.args.batch_size
        self.state.epoch = self.state.episode / self._rows.size
        every = self.args.torch_empty_cache_steps
        if every and self.state.global_step % every == 0 and torch.cuda.is_available():
            torch.cuda.empty_cache()
        loop = self._loop
        theirs = logs.trl_keys(
            row,
            loop.batch,
            self.settings,
            ratio_variance=loop.ratio_variance(),
            seconds=time.perf_counter() - started,
            begun=begun,
        )
        self._steps.append({**row, **theirs})
        if loop.broken is not None:
            self._log_steps()
            raise Instability(
                f"step {self.state.global_step}: {loop.broken}; the weights are those before it",
                "Lower learning_rate, or train(resume_from_checkpoint=True) with other settings.",
            )
        self.control = self.callback_handler.on_step_end(self.args, self.state, self.control)
        self._act()
        if int(self.state.epoch + 1e-9) > before:
            self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
            self._act()
            self.control = self.callback_handler.on_epoch_begin(self.args, self.state, self.control)
        self._show_replies()

    def _act(self) -> None:
        """Log, evaluate and save if a callback asked for it."""
        if self.control.should_log:
            self._log_steps()
        if self.control.should_evaluate:
            self._evaluate_all()
        if self.control.should_save:
            self._save_checkpoint()
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _end(self) -> None:
        best = self.state.best_model_checkpoint
        if self.args.load_best_model_at_end and best is not None:
            self._load_best(Path(best))
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        if self.control.should_save:
            self._save_checkpoint()
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _outcome(self, started: float, begun: int) -> TrainOutput:
        seconds = time.perf_counter() - started
        losses = [entry["loss/total"] for entry in self.state.log_history if "loss/total" in entry]
        metrics = {
            "train_runtime": seconds,
            "train_samples_per_second": (self.state.episode - begun) / seconds,
            "train_loss": losses[-1] if losses else float("nan"),
        }
        return TrainOutput(self.state.global_step, metrics["train_loss"], metrics)


class SAFETrainer(PPOTrainer):
    """SAFE (Maity 2026, arXiv 2602.04651) with the same interface; ``args`` is a ``SAFEConfig``.

    The spread of the initial policy's rewards is the unit of the controller's reward. It is measured when training
    begins, on up to 128 held-out prompts, or on training prompts if there are no held-out ones.
    """

    _name: ClassVar[str] = "SAFE"
    _tags: ClassVar[tuple[str, ...]] = ("trl", "ppo", "safe")

    def _check_kind(self, args: Any) -> None:
        if not is_safe(args):
            raise UsageError(f"SAFETrainer got a {type(args).__name__}", "Use a SAFEConfig, or PPOTrainer.")

    def _measure_spread(self) -> None:
        rows = next(iter(self._heldout.values()), self._rows)
        self._loop.sigma0 = spread_of_scores(
            self.settings, self._world, self._processes, rows.first(SIGMA_ROWS), self.args.per_device_eval_batch_size
        )
