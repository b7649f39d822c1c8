"""A trainer that reports: log entries, evaluations, and replies to look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas
from transformers.trainer_utils import SaveStrategy

from safebench.errors import UsageError
from safebench.trl import keys, replies
from safebench.trl.attributes import Attributes


class Reporting(Attributes):
    """What a trainer tells of its run."""

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Add an entry to ``state.log_history`` and hand it to the callbacks."""
        if self.state.epoch is not None:
            logs["epoch"] = self.state.epoch
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def _log_steps(self) -> None:
        if self._steps:
            logs, self._steps = keys.entry(self._steps), []
            self.log(dict(logs))
        self.control.should_log = False

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Reply to the held-out prompts at temperature 1 with the noise of the seed; log and return what was measured.

        Keys are ``eval_reward``, ``eval_kl`` (exact, nats per token), ``eval_entropy``, ``eval_length``,
        ``eval_distinct``, ``eval_distinct_2``, ``eval_first_perplexity``; of a dictionary of data sets
        ``eval_<name>_reward`` and so on.
        """
        named = self._named(eval_dataset)
        if not named:
            raise UsageError("there is nothing to evaluate on", "Give eval_dataset to the trainer, or to evaluate().")
        found: dict[str, float] = {}
        for name, rows in named.items():
            prefix = f"{metric_key_prefix}_{name}" if name else metric_key_prefix
            measured = replies.measure(
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
        """Print replies to held-out prompts, nearly greedy, with their scores, and return them; None without prompts.

        ``sampling``: only as many as fit one batch, as is done during training.
        """
        if not self._heldout:
            return None
        size = self.args.per_device_eval_batch_size
        frame = pandas.concat(
            [
                replies.complete(self.settings, self._world, self._processes, rows, size, size if sampling else None)
                for rows in self._heldout.values()
            ],
            ignore_index=True,
        )
        if self.is_world_process_zero():
            replies.show(frame)
            self._send_table(frame)
        return frame

    def _send_table(self, frame: pandas.DataFrame) -> None:
        """Hand the replies to Weights & Biases, where its callback is at work."""
        for callback in self.callback_handler.callbacks:
            wandb = getattr(callback, "_wandb", None)
            if wandb is not None and wandb.run is not None:
                wandb.log({"completions": wandb.Table(dataframe=frame)})

    def _show_replies(self) -> None:
        every = self.sample_generations_freq
        if every and self._heldout and (self.state.global_step - 1) % every == 0:
            self.generate_completions(sampling=True)
