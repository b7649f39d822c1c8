"""The drop-in's training loop: callbacks, logs, evaluation, checkpoints that go on bit by bit, early stops."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from safebench.errors import BadResource, Instability, MissingResource, UsageError
from safebench.metrics import MEASURED
from safebench.rl.kl import sampled_kl
from safebench.trl import PPOTrainer, SAFETrainer, logs
from tests.support.drop_in import (
    BATCH,
    REPLY,
    adapted,
    classifier,
    entries,
    finite,
    lasting,
    lora,
    policy_model,
    quietly,
    rows,
    same,
    trainer,
    weights,
)

BEST_IS_KEPT = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "metric_for_best_model": "reward",
    "greater_is_better": True,
    "load_best_model_at_end": True,
}
EVENTS = ("train_begin", "step_begin", "step_end", "log", "evaluate", "save", "train_end", "epoch_begin", "epoch_end")


class Heard(TrainerCallback):
    """Notes every event, and the step at which it came."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self.seen: dict[str, Any] = {}

    def steps(self, event: str) -> list[int]:
        return [step for name, step in self.events if name == event]


def _note(event: str) -> Any:
    def heard(self: Heard, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.events.append((event, state.global_step))
        self.seen.update(more)

    return heard


for _event in EVENTS:
    setattr(Heard, f"on_{_event}", _note(_event))


class Stop(TrainerCallback):
    """Stops the training after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        control.should_training_stop = control.should_training_stop or state.global_step >= self.step


def test_events_come_in_transformers_order(tmp_path: Path) -> None:
    heard = Heard()
    made = trainer(tmp_path, callbacks=[heard], config={"save_strategy": "steps", "save_steps": 2, "max_steps": 2})
    made.train()
    assert heard.events == [
        ("train_begin", 0),
        ("epoch_begin", 0),
        ("step_begin", 0),
        ("step_end", 1),
        ("log", 1),
        ("step_begin", 1),
        ("step_end", 2),
        ("log", 2),
        ("save", 2),
        ("train_end", 2),
    ]
    assert heard.seen["model"] is made.model
    assert heard.seen["optimizer"] is made.optimizer
    assert heard.seen["processing_class"] is made.processing_class


def test_intervals_are_kept(tmp_path: Path) -> None:
    heard = Heard()
    config = {
        "logging_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 3,
        "max_steps": 7,
    }
    trainer(tmp_path, callbacks=[heard], eval_dataset=rows(3), config=config).train()
    assert heard.steps("evaluate") == [2, 4, 6, 7]
    assert heard.steps("save") == [3, 6, 7]
    assert Counter(heard.steps("log")) == Counter([3, 6, 2, 4, 6, 7])


def test_intervals_may_be_epochs_or_shares(tmp_path: Path) -> None:
    heard = Heard()
    config = {
        "logging_strategy": "epoch",
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "max_steps": 6,
        "eval_delay": 2,
    }
    trainer(tmp_path, callbacks=[heard], train_dataset=rows(8), eval_dataset=rows(2), config=config).train()
    assert heard.steps("epoch_end") == [2, 4, 6]
    assert heard.steps("save") == [2, 4, 6]
    assert heard.steps("evaluate") == [4, 6]
    heard = Heard()
    trainer(tmp_path, callbacks=[heard], config={"logging_steps": 0.5, "max_steps": 6}).train()
    assert heard.steps("log") == [3, 6]


def test_a_callback_may_ask_for_anything(tmp_path: Path) -> None:
    class Ask(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            control.should_log = control.should_evaluate = control.should_save = state.global_step == 2

    heard = Heard()
    made = trainer(tmp_path, callbacks=[Ask(), heard], eval_dataset=rows(2), config={"logging_steps": 100})
    made.train()
    assert heard.steps("save") == heard.steps("evaluate") == [2]
    assert [entry["step"] for entry in entries(made)] == [2]
    assert (tmp_path / "checkpoint-2").is_dir()


def test_a_callback_stops_the_training(tmp_path: Path) -> None:
    heard = Heard()
    made = trainer(tmp_path, callbacks=[Stop(2), heard])
    made.train()
    assert made.state.global_step == 2
    assert heard.steps("train_end") == [2]


def test_early_stopping_works_as_transformers_has_it(tmp_path: Path) -> None:
    config = {
        **BEST_IS_KEPT,
        "max_steps": 6,
    }
    made = trainer(
        tmp_path,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=1)],
        reward_model=lambda prompts, replies: [-float(calls())] * len(replies),
        eval_dataset=rows(2),
        config=config,
    )
    counter = iter(range(100))

    def calls() -> int:
        return next(counter)

    made.train()
    assert made.state.global_step == 2
    assert made.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    first = torch.load(tmp_path / "checkpoint-1" / "step-1.pt", weights_only=True)["state"]["loop"]["adapter"]
    assert all(torch.equal(p, first[name]) for name, p in made._world.policy.trainable().items())


def test_the_best_checkpoint_survives_rotation(tmp_path: Path) -> None:
    config = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "metric_for_best_model": "eval_length",
        "greater_is_better": False,
        "load_best_model_at_end": True,
        "save_total_limit": 2,
    }
    made = trainer(tmp_path, eval_dataset=rows(2), config=config)
    made.train()
    best = made.state.best_model_checkpoint
    kept = {str(path) for path in tmp_path.glob("checkpoint-*")}
    assert kept == {best, str(tmp_path / "checkpoint-4")}


def test_an_unknown_best_metric_is_named(tmp_path: Path) -> None:
    config = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "bleu"}
    with pytest.raises(UsageError, match=r"'bleu'.*eval_reward"):
        trainer(tmp_path, eval_dataset=rows(2), config=config).train()


def test_an_entry_has_all_keys_of_both(tmp_path: Path) -> None:
    made = trainer(tmp_path, reward_model=classifier(8), value_model=classifier())
    made.train()
    for entry in entries(made):
        assert set(logs.MEANING) <= set(entry)
        assert {key for key in entry if "/" in key} - set(logs.MEANING) <= set(MEASURED)
        assert finite(entry)
        json.dumps(entry)


def test_trls_keys_are_trls(tmp_path: Path) -> None:
    logged = [json.loads(line) for line in Path("tests/data/trl-1.12.0-ppo.jsonl").read_text().splitlines()]
    theirs = {key for entry in logged for key in entry.get("logs", entry)} - {"epoch", "step"}
    assert {key for key in theirs if "/" in key or key in ("lr", "episode", "eps")} <= set(logs.MEANING)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_keys_mean_what_trl_means(estimator: Any, tmp_path: Path) -> None:
    config = {
        "kl_estimator": estimator,
        "kl_coef": 0.3,
        "vf_coef": 0.5,
        "missing_eos_penalty": 1.0,
        "num_mini_batches": 2,
        "max_steps": 1,
        "cliprange": 0.001,
    }
    made = trainer(tmp_path, model=adapted(), ref_model=policy_model(), config=config)
    caught: dict[str, Any] = {}
    appraise = made._loop._advantages

    def spy(rollout: Any, measured: Any, rewards: Any) -> Any:
        caught.update(rollout=rollout, measured=measured, rewards=rewards)
        return appraise(rollout, measured, rewards)

    made._loop._advantages = spy  # type: ignore[method-assign]
    made.train()
    (entry,) = entries(made)
    rollout, measured = caught["rollout"], caught["measured"]
    kl = sampled_kl(measured.log_probs, measured.reference_log_probs, estimator) * rollout.mask
    scores = caught["rewards"] - (~rollout.ended).float()
    assert entry["objective/kl"] == pytest.approx(float(kl.sum(1).mean()), rel=1e-6)
    assert entry["objective/kl"] != 0
    assert entry["objective/entropy"] == pytest.approx(float(-measured.log_probs.sum(1).mean()), rel=1e-6)
    assert entry["objective/scores"] == pytest.approx(float(scores.mean()), rel=1e-6)
    assert entry["objective/non_score_reward"] == pytest.approx(-0.3 * entry["objective/kl"])
    assert entry["objective/rlhf_reward"] == pytest.approx(entry["reward/shaped"], rel=1e-5)
    assert entry["loss/value_avg"] == pytest.approx(entry["loss/value"] / 0.5)
    assert entry["loss/policy_avg"] == entry["loss/policy"]
    assert entry["val/num_eos_tokens"] == int((rollout.tokens[rollout.mask] == 1).sum())
    assert entry["val/ratio"] == pytest.approx(torch.tensor(made._loop.algorithm.ratios).mean().item(), rel=1e-2)  # type: ignore[attr-defined]
    assert len(made._loop.algorithm.ratios) == 4  # type: ignore[attr-defined]
    assert entry["val/ratio_var"] == pytest.approx(float(torch.tensor(made._loop.algorithm.ratios).var()), rel=1e-4)  # type: ignore[attr-defined]
    assert 0 < entry["policy/clipfrac_avg"] <= 1
    assert (entry["lr"], entry["episode"]) == (1e-2, BATCH)


def test_an_entry_of_several_steps_is_their_mean() -> None:
    steps = [
        {"a": 1.0, "kl/max": 3.0, "episode": 4, "lr": 1.0, "name": "x", "b": None, "c": math.nan},
        {"a": 3.0, "kl/max": 1.0, "episode": 8, "lr": 0.5, "name": "y", "b": 5.0, "c": 1.0},
    ]
    assert logs.entry(steps) == {"a": 2.0, "kl/max": 3.0, "episode": 8, "lr": 0.5, "name": "y", "b": 5.0}


def test_between_entries_no_step_is_lost(tmp_path: Path) -> None:
    each, pairs = trainer(tmp_path), trainer(tmp_path, config={"logging_steps": 2})
    for made in (each, pairs):
        made.train()
    first, second, *_ = entries(each)
    found = entries(pairs)[0]
    assert (found["step"], found["episode"], found["lr"]) == (2, 8, second["lr"])
    assert found["objective/scores"] == pytest.approx((first["objective/scores"] + second["objective/scores"]) / 2)
    assert found["kl/max"] == max(first["kl/max"], second["kl/max"])


@pytest.mark.parametrize(
    ("name", "shares"),
    [("linear", [1, 0.75, 0.5, 0.25]), ("constant", [1, 1, 1, 1]), ("cosine", [1, 0.853553, 0.5, 0.146447])],
)
def test_schedules_are_transformers_own(name: str, shares: list[float], tmp_path: Path) -> None:
    made = trainer(tmp_path, config={"lr_scheduler_type": name})
    made.train()
    assert [entry["lr"] for entry in entries(made)] == pytest.approx([1e-2 * share for share in shares], rel=1e-5)


def test_warming_up(tmp_path: Path) -> None:
    made = trainer(tmp_path, config={"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2})
    made.train()
    assert [entry["lr"] for entry in entries(made)] == pytest.approx([0.0, 5e-3, 1e-2, 1e-2])


def test_the_optimizers_numbers_are_the_configurations(tmp_path: Path) -> None:
    config = {"adam_beta1": 0.5, "adam_beta2": 0.6, "adam_epsilon": 1e-3, "weight_decay": 0.1}
    made = trainer(tmp_path, value_model=classifier(), config=config)
    for group in made.optimizer.param_groups:
        assert (group["betas"], group["eps"]) == ((0.5, 0.6), 1e-3)
    decays = {id(p): group["weight_decay"] for group in made.optimizer.param_groups for p in group["params"]}
    for name, p in made.model.named_parameters():
        assert decays[id(p)] == (0.0 if "norm" in name or "bias" in name else 0.1), name
    assert all(id(p) in decays for p in made._critic.parameters())


def test_other_optimizers_by_name(tmp_path: Path) -> None:
    made = trainer(tmp_path, config={"optim": "sgd"})
    made.train()
    assert type(made.optimizer) is torch.optim.SGD


def test_an_optimizer_that_is_bound_to_layers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = (torch.optim.SGD, {"params": [], "lr": 1.0})
    monkeypatch.setattr("safebench.trl.parts.Trainer.get_optimizer_cls_and_kwargs", lambda *_: found)
    with pytest.raises(UsageError, match="bound to layers"):
        trainer(tmp_path)


def test_given_optimizers_are_used_and_get_the_critic(tmp_path: Path) -> None:
    model = policy_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    made = trainer(tmp_path, model=model, optimizers=(optimizer, schedule))
    before = [p.detach().clone() for p in made._critic.parameters()]
    made.train()
    assert made.optimizer is optimizer
    assert [entry["lr"] for entry in entries(made)] == [0.5, 0.25, 0.125, 0.0625]
    assert any(not torch.equal(a, b) for a, b in zip(before, made._critic.parameters(), strict=True))


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("value", [False, True])
def test_a_resumed_run_goes_on_bit_for_bit(safe: bool, value: bool, tmp_path: Path) -> None:
    def make(folder: Path, **more: Any) -> PPOTrainer:
        config = {
            "save_strategy": "steps",
            "save_steps": 3,
            "max_steps": 5,
            "logging_steps": 2,
            "num_mini_batches": 2,
            "total_episodes": None,
        }
        parts = {"value_model": classifier() if value else None, "reward_model": classifier(8)}
        return trainer(folder, safe=safe, config=config, peft_config=lora(), **parts, **more)

    whole = make(tmp_path / "whole")
    whole.train()
    broken = make(tmp_path / "broken", callbacks=[Stop(3)])
    broken.train()
    assert broken.state.global_step == 3
    resumed = make(tmp_path / "broken")
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(whole.model), weights(resumed.model))
    assert same(critic_weights(whole), critic_weights(resumed))
    assert list(map(lasting, resumed.state.log_history)) == list(map(lasting, whole.state.log_history))
    assert (resumed.state.episode, resumed.state.epoch) == (whole.state.episode, whole.state.epoch)


def critic_weights(made: PPOTrainer) -> dict[str, torch.Tensor]:
    """The critic's weights, and those of its target."""
    parts = {"online": made._critic.online, "body": made._critic.body, "target": made._critic.target}
    there = {part: weights(module) for part, module in parts.items() if module is not None}
    return {f"{part}.{name}": p for part, found in there.items() for name, p in found.items()}


def test_whole_models_resume_too_by_name_and_by_argument(tmp_path: Path) -> None:
    config = {"save_strategy": "steps", "save_steps": 2}
    whole = trainer(tmp_path, config=config)
    whole.train()
    named = trainer(tmp_path, config=config)
    named.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    argued = trainer(tmp_path, config={**config, "resume_from_checkpoint": str(tmp_path / "checkpoint-2")})
    argued.train()
    again = trainer(tmp_path, config=config)
    again.train()
    for other in (named, argued, again):
        assert same(weights(whole.model), weights(other.model))


def test_one_trainer_may_train_twice(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    made.train()
    after = weights(made.model)
    made.train()
    assert made.state.global_step == 4
    assert len(entries(made)) == 4
    assert entries(made)[0]["lr"] == 1e-2
    assert not same(after, weights(made.model))


def test_a_checkpoint_holds_what_trls_users_expect_and_the_rest(tmp_path: Path) -> None:
    config = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    trainer(tmp_path, peft_config=lora(), config=config).train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    names = {path.name for path in (tmp_path / "checkpoint-4").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "trainer_state.json"} <= names
    state = torch.load(tmp_path / "checkpoint-4" / "step-4.pt", weights_only=True)["state"]["loop"]
    assert {"adapter", "critic", "optimizer", "moments", "algorithm"} <= set(state)
    assert json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())["episode"] == 16


def test_a_damaged_checkpoint_is_passed_over_and_none_is_an_error(tmp_path: Path) -> None:
    config = {"save_strategy": "steps", "save_steps": 2}
    trainer(tmp_path, config=config).train()
    (tmp_path / "checkpoint-4" / "step-4.pt").write_bytes(b"half")
    made = trainer(tmp_path, config={**config, "save_strategy": "no"}, callbacks=[heard := Heard()])
    made.train(resume_from_checkpoint=True)
    assert heard.steps("train_begin") == [2]
    for folder in tmp_path.glob("checkpoint-*"):
        shutil.rmtree(folder)
    with pytest.raises(MissingResource, match="no whole checkpoint"):
        made.train(resume_from_checkpoint=True)
    with pytest.raises(MissingResource, match="nowhere"):
        made.train(resume_from_checkpoint="nowhere")


def test_only_the_model_may_be_saved(tmp_path: Path) -> None:
    made = trainer(tmp_path, config={"save_strategy": "steps", "save_steps": 4, "save_only_model": True})
    made.train()
    assert not list((tmp_path / "checkpoint-4").glob("*.pt"))
    with pytest.raises(BadResource, match="no state to go on from") as fault:
        made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert "save_only_model" in str(fault.value.hint)


def test_callbacks_state_may_be_restored(tmp_path: Path) -> None:
    config = {
        **BEST_IS_KEPT,
        "restore_callback_states_from_checkpoint": True,
    }
    stop = EarlyStoppingCallback(early_stopping_patience=50)
    trainer(tmp_path, callbacks=[stop], eval_dataset=rows(2), config=config).train()
    other = EarlyStoppingCallback(early_stopping_patience=3)
    made = trainer(tmp_path, callbacks=[other], eval_dataset=rows(2), config=config)
    made.train(resume_from_checkpoint=True)
    assert other.early_stopping_patience == 50
    assert other.early_stopping_patience_counter == stop.early_stopping_patience_counter > 0


def test_a_number_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    class Spoil(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **more: Any) -> None:
            if state.global_step == 2:
                for p in made._critic.parameters():
                    p.data.fill_(float("inf"))

    made = trainer(tmp_path, callbacks=[Spoil()])
    with pytest.raises(Instability, match="step 3"):
        made.train()
    assert all(torch.isfinite(p).all() for p in made.model.policy.parameters())


def test_evaluation_has_fixed_noise_and_its_own_keys(tmp_path: Path) -> None:
    made = trainer(tmp_path, eval_dataset=rows(3), config={"eval_on_start": True, "max_steps": 1})
    made.train()
    first, second = made.evaluate(), made.evaluate()
    assert first == second
    expected = {"reward", "kl", "entropy", "length", "distinct", "distinct_2", "first_perplexity"}
    assert set(first) == {f"eval_{name}" for name in expected}
    assert made.state.log_history[0]["eval_kl"] == 0.0
    assert made.state.log_history[0]["step"] == 0
    assert set(made.evaluate({"hard": rows(2)}, ignore_keys=["kl"])) == {
        f"eval_hard_{name}" for name in expected - {"kl"}
    }
    assert set(made.evaluate(rows(1), metric_key_prefix="test")) == {f"test_{name}" for name in expected}


def test_evaluation_does_not_depend_on_how_rows_are_grouped(tmp_path: Path) -> None:
    found = [
        trainer(tmp_path, eval_dataset=rows(5), config={"per_device_eval_batch_size": size}).evaluate()
        for size in (1, 2, 8)
    ]
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("config", [{"eval_strategy": "steps"}, {"eval_on_start": True}])
def test_evaluation_without_prompts_is_refused_at_once(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="eval_dataset is None"):
        trainer(tmp_path, config=config)


def test_there_must_be_something_to_evaluate_on(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to evaluate on"):
        trainer(tmp_path).evaluate()


def test_transformers_reporting_callbacks_get_the_entries(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer(tmp_path, config={"report_to": "tensorboard", "max_steps": 2}).train()
    (folder,) = {path.parent for path in tmp_path.rglob("events.out.*")}
    found = EventAccumulator(str(folder)).Reload()
    tags = found.Tags()["scalars"]
    assert {"train/objective/kl", "train/kl/mean", "train/lr"} <= set(tags)
    assert [event.step for event in found.Scalars("train/objective/kl")] == [1, 2]


def test_replies_are_shown_as_often_as_asked_and_on_demand(tmp_path: Path) -> None:
    config = {"num_sample_generations": 2, "per_device_eval_batch_size": 3}
    made = trainer(tmp_path, eval_dataset=rows(5), config=config)
    with quietly() as said:
        made.train()
    assert said.getvalue().count("model response") == 2
    with quietly() as said:
        frame = made.generate_completions()
        some = made.generate_completions(sampling=True)
    assert frame is not None and some is not None
    assert list(frame.columns) == ["query", "model response", "score"]
    assert (len(frame), len(some)) == (5, 3)
    assert frame["query"][0] in said.getvalue()
    assert trainer(tmp_path).generate_completions() is None


def test_safe_measures_the_spread_of_the_initial_rewards_and_keeps_it(tmp_path: Path) -> None:
    config = {"save_strategy": "steps", "save_steps": 2}
    made = trainer(tmp_path, safe=True, eval_dataset=rows(6), config=config)
    made.train()
    sigma = made._loop.sigma0
    assert sigma not in (0.0, 1.0)
    resumed = trainer(tmp_path, safe=True, eval_dataset=rows(2), config=config)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed._loop.sigma0 == sigma
    assert "controller/threshold" in entries(made)[0]


def test_safes_penalty_reaches_the_loss(tmp_path: Path) -> None:
    config = {"kl_threshold": 0.0, "kl_threshold_min": 0.0, "kl_threshold_max": 0.0, "penalty_coef": 5.0}
    made = trainer(tmp_path, safe=True, model=adapted(), ref_model=policy_model(), config=config)
    made.train()
    assert entries(made)[0]["loss/penalty"] > 0


def test_each_trainer_wants_its_own_configuration(tmp_path: Path) -> None:
    safe, plain = trainer(tmp_path, safe=True).args, trainer(tmp_path).args
    with pytest.raises(UsageError, match="SAFETrainer got a PPOConfig"):
        SAFETrainer(plain, None, None, None, None, None, None)
    with pytest.raises(UsageError, match="PPOTrainer got"):
        PPOTrainer(safe, None, None, None, None, None, None)


def test_accumulation_and_minibatches_go_together(tmp_path: Path) -> None:
    config = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "num_mini_batches": 2,
        "max_steps": 2,
        "optim": "sgd",
        "learning_rate": 0.3,
    }
    made = trainer(tmp_path, config=config)
    start = weights(made.model)
    made.train()
    assert len(made._loop.algorithm.ratios) == 2 * 2  # type: ignore[attr-defined]
    assert entries(made)[-1]["episodes"] == 16
    whole = trainer(tmp_path, config={**config, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1})
    whole.train()
    moved = {name: p - start[name] for name, p in weights(whole.model).items()}
    apart = {name: p - weights(made.model)[name] for name, p in weights(whole.model).items()}
    assert length(moved) > 0
    assert length(apart) <= 1e-4 * length(moved)


def length(tensors: dict[str, torch.Tensor]) -> float:
    """The norm of all of them."""
    return float(torch.cat([t.flatten() for t in tensors.values()]).norm())


def test_nothing_is_uploaded_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    class Api:
        def __init__(self, token: str | None) -> None:
            self.token = token

        def create_repo(self, repo: str, **more: Any) -> Any:
            calls.append(("repo", {"repo": repo, "token": self.token, **more}))
            return type("Url", (), {"repo_id": f"me/{repo}"})()

        def upload_folder(self, **more: Any) -> str:
            calls.append(("upload", more))
            return "done"

    monkeypatch.setattr("safebench.trl.saving.HfApi", Api)
    made = trainer(tmp_path / "model", config={"save_strategy": "steps", "hub_token": "t", "hub_private_repo": True})
    made.train()
    made.save_model()
    assert calls == []
    assert made.push_to_hub(dataset_name="me/prompts") == "done"
    (_, repo), (_, upload) = calls
    assert (repo["repo"], repo["token"], repo["private"]) == ("model", "t", True)
    assert (upload["repo_id"], upload["folder_path"]) == ("me/model", str(tmp_path / "model"))
    assert upload["ignore_patterns"] == ["_*", "checkpoint-*"]
    card = (tmp_path / "model" / "README.md").read_text()
    assert "me/prompts" in card and "PPOTrainer" in card
    calls.clear()
    trainer(tmp_path / "other", config={"save_strategy": "steps", "save_steps": 2, "push_to_hub": True}).train()
    assert [name for name, _ in calls] == ["repo", "upload"] * 2


def test_a_run_stays_within_its_length(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    outcome = made.train()
    assert outcome.global_step == made.state.max_steps == 4
    assert math.isfinite(outcome.training_loss)
    assert all(entry["reply/length"] <= REPLY for entry in entries(made))
    assert made.is_world_process_zero() and made.is_local_process_zero()
