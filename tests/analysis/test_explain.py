"""What show --explain says is what the log has: sentences recomputed from logs of the real controllers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from safebench import config
from safebench.algorithms.base import Measurement
from safebench.algorithms.safe_controller import controller_of
from safebench.analysis import runs
from safebench.analysis.explain import Episode, Log
from safebench.cli.main import main
from safebench.report.explain import explain
from tests.support.synthetic import write_run

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
LOW, HIGH = 0.1, 4.0
BARE = ["penalty.short_decay=0.0", "penalty.pid.enabled=false", "penalty.phase.enabled=false"]
"""KL_short is the batch's KL and the threshold 0.3: which steps have a penalty is then ours to say."""


def controlled(kls, experiment="safe", overrides=(), **cells):
    """Curves as the controller that the settings ask for logs them, for KLs of our choosing from step 1 on."""
    settings = config.resolve(experiment, overrides=overrides)
    assert settings.penalty is not None
    chosen = controller_of(settings.penalty)
    state, rows = chosen.start, [{}]
    for step, kl in enumerate(kls, 1):
        entropy = 1.2 + 0.1 * (step % 20)
        state, signal = chosen.update(state, Measurement(kl, entropy, 0.02 * step))
        row = {"kl/mean": kl, "entropy/mean": entropy, "loss/policy": -0.02, **chosen.columns(signal)}
        row["loss/penalty"] = chosen.penalty(signal)[0]
        if step % 5 == 1:
            row |= {"grad/policy": 0.5, "grad/penalty": 3.0 * row["loss/penalty"]}
        rows.append(row)
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: [row.get(key) for row in rows] for key in keys} | cells


def written(folder, curves, experiment="safe", overrides=()):
    """Write the curves as a run and read it back."""
    return runs.read(write_run(folder, experiment, 0, curves, overrides=overrides))


def bare(folder, kls, **cells):
    """Write and read a run whose penalty is where KL is above 0.3."""
    return written(folder, controlled(kls, overrides=BARE, **cells), overrides=BARE)


def figure(value):
    return f"{value:.4g}"


def span(values):
    low, high = figure(values.min()), figure(values.max())
    return low if low == high else f"{low} to {high}"


@pytest.mark.parametrize("experiment", ["safe", "safe-published"])
def test_each_sentence_of_an_episode_is_what_the_log_has(tmp_path, experiment):
    kls = [LOW] * 10 + [2.0] * 9 + [0.05] * 30
    run = written(tmp_path, controlled(kls, experiment), experiment)
    (episode,) = Log(run).episodes
    text = explain(run)
    at = {key: run.column(key) for key in run.cells if key != "controller/phase"}
    first, rows = episode.first, range(episode.first, episode.last + 1)  # row t is step t
    short, limit, penalty = at["controller/kl_short"], at["controller/threshold"], at["loss/penalty"]
    assert first == next(t for t in range(1, 50) if short[t] > limit[t]) and penalty[first - 1] == 0 < penalty[first]
    top = max(rows, key=lambda t: penalty[t])
    p, i, d = (at[f"controller/pid_{part}"][first] for part in "pid")
    measured = [t for t in rows if math.isfinite(at["grad/penalty"][t])]
    norms = [at["grad/penalty"][t] for t in measured]
    gates = [at["controller/gate"][t] for t in rows]
    assert max(gates) > 1 > min(gates)
    assert (p > 0.1) == (experiment == "safe")  # where the other form's moves by thousandths
    made = (0.3 + p + i + d) * 1.5
    held = "" if made == limit[first] else f", held to {figure(limit[first])}"
    for said in (
        f"The penalty acted at {len(rows)} of 49 steps ({100 * len(rows) / 49:.1f} %), in 1 episode: the first such "
        f"step is {first}, the last {episode.last}.",
        f"Its sum over these steps is {figure(sum(penalty[t] for t in rows))}, ",
        f"Episode 1: steps {first} to {episode.last} ({len(rows)} steps)",
        f"At its first step KL_short was {figure(short[first])} and the threshold {figure(limit[first])} (the step "
        f"before: {figure(short[first - 1])} and {figure(limit[first - 1])}); KL of the batch 2; entropy ",
        f"Threshold at step {first}: (base 0.3 + P {figure(p)} + I {figure(i)} + D {figure(d)}) × phase factor 1.5 "
        f"(warmup) = {figure(made)}{held}; in the episode {span(limit[first : episode.last + 1])}, PID ",
        f"below the floor of 2 at {sum(at['entropy/mean'][t] < 2 for t in rows)} of {len(rows)} steps; it weakened the "
        f"penalty at {sum(g < 1 for g in gates)} and strengthened it at {sum(g > 1 for g in gates)} of {len(rows)}",
        f"the largest {figure(penalty[top])} at step {top} = {figure(at['controller/gate'][top])} (gate) × 0.1 × "
        f"({figure(short[top])} - {figure(limit[top])})²; the policy term there -0.02.",
        f"measured at {len(measured)} of these {len(rows)} steps: the penalty's {figure(min(norms))} to "
        f"{figure(max(norms))}, {figure(min(norms) / 0.5)} to {figure(max(norms) / 0.5)} times the policy term's.",
        f"10 steps after its first step, at step {first + 10}, KL was {figure(at['kl/mean'][first + 10])}, ",
    ):
        assert said in text, said


@pytest.mark.parametrize(
    ("experiment", "starts"),
    [("safe-published", {"warmup": 1, "plateau": 50, "climbing": 100}), ("safe", {"warmup": 1, "climbing": 100})],
)
def test_phases_within_an_episode_are_told_apart(tmp_path, experiment, starts):
    run = written(tmp_path, controlled([1.0] * 120, experiment), experiment)
    text, limit = explain(run), run.column("controller/threshold")
    first = Log(run).episodes[0].first
    spans = dict(zip(starts, zip(starts.values(), [*starts.values(), 121][1:], strict=False), strict=True))
    told = []
    for phase, (start, end) in spans.items():
        begin, values = max(start, first), limit[max(start, first) : end]
        told.append(f"{phase} in steps {begin} to {end - 1} (threshold {span(values)}, KL 1)")
    assert f"Phase: {', '.join(told)}." in text
    acting = [f"{phase} {end - max(start, first)} of {end - start} steps" for phase, (start, end) in spans.items()]
    assert f"By phase: {', '.join(acting)}." in text


def test_episodes_at_their_boundaries(tmp_path):
    run = bare(tmp_path, [0.9, LOW, LOW, 0.5, LOW, 0.3, 0.6, 0.7])
    got = [(e.first, e.last, e.open) for e in Log(run).episodes]
    assert got == [(1, 1, False), (4, 4, False), (7, 8, True)]  # at the threshold itself there is no penalty
    text = explain(run)
    assert "Episode 1: step 1 (1 step)\n" in text
    assert "Episode 3: steps 7 to 8 (2 steps, still open where the log ends)" in text
    assert "At its first step KL_short was 0.9 and the threshold 0.3; KL of the batch 0.9" in text  # nothing before
    assert "At step 8, the last one logged within 10 steps of its first, KL was 0.7, lower than 0.9" in text
    assert "KL was 0.7, higher than 0.6 at the first; the least in between was 0.7 at step 8." in text


def test_an_episode_at_the_last_step_has_nothing_after_it(tmp_path):
    text = explain(bare(tmp_path, [LOW, LOW, 0.5]))
    assert "Episode 1: step 3 (1 step, still open where the log ends)" in text
    assert "What KL did afterwards is not in the log." in text
    assert "Ten steps after" not in text


@pytest.mark.parametrize(("tenth", "word"), [(0.4, "lower than"), (0.5, "the same as"), (0.6, "higher than")])
def test_what_followed(tmp_path, tenth, word):
    text = explain(bare(tmp_path, [LOW, 0.5, *[0.45] * 9, tenth, LOW]))
    assert f"10 steps after its first step, at step 12, KL was {tenth}, {word} 0.5 at the first" in text
    lower = int(tenth < 0.5)
    assert f"Ten steps after an episode's first step, KL was lower than at it in {lower} of 1." in text


def test_twelve_episodes_are_told_and_the_rest_counted(tmp_path):
    kls = [kl for i in range(14) for kl in (0.4 + 0.01 * ((5 * i) % 14), LOW)]
    ungated = [*BARE, "penalty.gate=false"]
    run = written(tmp_path, controlled(kls, overrides=ungated), overrides=ungated)
    text = explain(run)
    small = sorted(episode.total for episode in Log(run).episodes)[:2]
    assert text.count("\nEpisode ") == 12 and "in 14 episodes" in text
    assert [i for i in range(1, 15) if f"Episode {i}: " not in text] == [1, 4]  # KL 0.4 and 0.41
    assert "Gate off: g = 1." in text
    assert f"2 further episodes, 2 steps together, with smaller sums: {figure(sum(small))} in all." in text


def test_gaps_do_not_cut_an_episode_and_a_number_that_is_none_is_told(tmp_path):
    curves = controlled([LOW, *[0.5] * 6, LOW], overrides=BARE)
    curves["loss/penalty"][4] = None
    curves["loss/penalty"][6] = math.nan
    run = written(tmp_path, curves, overrides=BARE)
    (episode,) = Log(run).episodes
    assert episode == Episode((1, 2, 4, 6), 2, 7, episode.total, False)
    text = explain(run)
    assert "At 2 of 8 steps the log has no finite penalty." in text and "acted at 4 of 6 steps" in text


def test_a_penalty_that_never_acted(tmp_path):
    text = explain(bare(tmp_path, [0.1, 0.25, 0.2]))
    assert "The penalty was zero at all 3 steps." in text
    assert "KL_short came nearest to the threshold at step 2: 0.25 and 0.3." in text
    assert "Episode" not in text


def test_what_the_clamp_held_is_told(tmp_path):
    high = ["penalty.base_threshold=0.5", "penalty.short_decay=0.0", "penalty.pid.enabled=false"]
    text = explain(written(tmp_path, controlled([HIGH] * 3, overrides=high), overrides=high))
    assert "× phase factor 1.5 (warmup) = 0.75, held to 0.6;" in text
    assert "The threshold lay at its upper limit at 3 of 3 steps." in text


def test_figures_that_do_not_fit_are_not_made_to(tmp_path):
    curves = controlled([0.5] * 3, overrides=BARE)
    curves["controller/threshold"] = [None, 0.31, 0.31, 0.31]
    text = explain(written(tmp_path, curves, overrides=BARE))
    assert "= 0.3, and the log has 0.31." in text
    assert "(gate) ×" not in text  # these parts do not give the logged penalty


def test_a_detached_penalty_is_named_inert(tmp_path):
    curves = controlled([0.5] * 60, overrides=BARE)
    curves["grad/penalty"] = [None if cell is None else 0.0 for cell in curves["grad/penalty"]]
    text = explain(written(tmp_path, curves, overrides=BARE))
    assert "The loss term penalty is inert: its gradient was exactly zero at 12 logged steps in a row" in text
    assert "measured at 12 of these 60 steps: the penalty's was exactly zero each time, so it moved no weight" in text


def test_the_released_arm_says_how_its_log_is_to_be_read(tmp_path):
    text = explain(written(tmp_path, controlled([0.9] * 3, "safe-official"), "safe-official"))
    assert "those of a step's last update, the penalty is the mean over its updates" in text


def test_the_momentum_form_without_gate_and_phase(tmp_path):
    run = written(tmp_path, controlled([0.2] * 50 + [0.25, 0.5], "safe-momentum"), "safe-momentum")
    text, rise = explain(run), (0.5 - 0.2) / 50
    assert [(e.first, e.last) for e in Log(run).episodes] == [(51, 52)]
    penalty = 0.1 * (0.5 - 0.3) ** 2 + 5 * rise**2
    made = f"0.1 × (0.5 - 0.3)² + 5 × {figure(rise)}² (the rise of KL)"
    assert f"the largest {figure(penalty)} at step 52 = {made}" in text
    assert "At its first step KL was 0.25 and the threshold 0.3 (the step before: 0.2 and 0.3); entropy" in text
    assert "Threshold: 0.3, the base; the log has no PID and no phase factor." in text
    assert "The log has no gate." in text and "The log has no phases." in text and "KL_short" not in text


def test_columns_that_an_old_log_lacks_are_said_to_be_missing(tmp_path):
    curves = {"loss/penalty": [None, 0.0, 0.25, 0.5], "kl/mean": [None, 0.1, 0.8, 0.9]}
    text = explain(written(tmp_path, curves))
    for said in (
        "The log has no phases.", "While it acted: KL 0.8 to 0.9.", "KL of the batch 0.8; the log has no threshold",
        "The log has no gate.", "measured at none of these steps.", "Penalty: 0.75 in all, the largest 0.5 at step 3.",
    ):  # fmt: skip
        assert said in text, said
    assert "nan" not in text


def test_ppo_has_its_kl_in_the_reward(tmp_path):
    curves = {"kl/mean": [None, 0.2, 0.6], "kl/sampled": [None, 2.0, 4.0]}
    text = explain(written(tmp_path, curves, "ppo"))
    assert "There is no controller and no penalty in this run's loss." in text
    assert "0.05 × the sampled KL (k1) is taken off each token's reward" in text
    assert "3 nats on average, which took 0.15 off its reward; most at step 2: 4 nats, 0.2 off." in text
    assert "KL was 0.4 on average and at most 0.6, at step 2." in text
    other = explain(written(tmp_path / "none", curves, "ppo", ["reward.kl_coefficient=0.0"]))
    assert "no KL in the reward, and none in the loss" in other
    third = explain(written(tmp_path / "k3", curves, "ppo", ["reward.kl_estimator=k3"]))
    assert "(k3)" in third and "on average, which" not in third  # k3 is not what kl/sampled has


def test_a_kl_term_in_the_loss_is_told(tmp_path):
    curves = {"kl/mean": [None, 0.2, 0.6], "loss/kl": [None, 0.01, 0.03]}
    text = explain(written(tmp_path, curves, "ppo-official"))
    assert "The loss has 0.05 × the sampled KL (k1) as a term of its own" in text
    assert "That term lay between 0.01 and 0.03." in text


def test_a_run_without_steps_or_without_its_penalty(tmp_path):
    assert "no training step yet" in explain(written(tmp_path, {"eval/reward": [0.1]}, overrides=["update.steps=5"]))
    text = explain(written(tmp_path / "b", {"kl/mean": [None, 0.4]}))
    assert "Its settings have a penalty and its log has none" in text


def test_the_command(capsys):
    for name in ("ppo/seed-1", "safe/seed-1"):
        assert main(["show", name, "--explain", "--results", str(REFERENCE)]) == 0
        shown = capsys.readouterr().out
        assert shown == explain(runs.read(REFERENCE / "embedded" / name)) and "nan" not in shown
        assert main(["show", name, "--results", str(REFERENCE)]) == 0
        assert "what its penalty did" not in capsys.readouterr().out
