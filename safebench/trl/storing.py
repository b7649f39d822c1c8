"""A trainer that stores: models, checkpoints that it resumes from, model cards, and uploads where asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import HubStrategy

from safebench.trl import hub, saving
from safebench.trl.parts import EpisodeState
from safebench.trl.reporting import Reporting
from safebench.world.loading import naming


class Storing(Reporting):
    """What a trainer keeps of its run."""

    def save_model(self, output_dir: str | Path | None = None, _internal_call: bool = False) -> None:
        """Write the policy (its adapter, where it has one) and the tokenizer into a folder, ``output_dir`` by default.

        Plain transformers and peft load it. With ``push_to_hub`` it is uploaded too, unless called from within.
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
        name = model_name or hub.repository(args).split("/")[-1]
        made = hub.card(name, base, dataset_name, [*self._tags, *extra], type(self).__name__, settings)
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
        """Upload model, tokenizer and card; ``kwargs`` go to ``create_model_card``. Nothing else ever uploads.

        With ``hub_strategy`` ``checkpoint`` or ``all_checkpoints`` the checkpoints go too.
        """
        args = self.args
        self.callback_handler.on_push_begin(args, self.state, self.control)
        self.save_model(_internal_call=True)
        if not self._processes.main:
            return None
        self.create_model_card(**kwargs)
        with_checkpoints = args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)
        self.hub_model_id = hub.repository(args)
        return hub.upload(
            args.output_dir,
            self.hub_model_id,
            message=commit_message or "End of training",
            token=token or args.hub_token,
            private=args.hub_private_repo if private is None else private,
            revision=revision or args.hub_revision,
            wait=blocking,
            leave_out=[] if with_checkpoints else ["checkpoint-*"],
        )
