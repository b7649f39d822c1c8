"""Settings: layers, numbers, faults, hashes, folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from safebench import config
from safebench.config import yaml_text
from safebench.config.schema import Penalty, Settings
from safebench.errors import UsageError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder: experiments then come from the repository."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def message(*arguments: object, **options: object) -> str:
    with pytest.raises(UsageError) as caught:
        config.resolve(*arguments, **options)  # type: ignore[arg-type]
    assert caught.value.hint
    return str(caught.value)


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "1.0e-5", "0.00001", "+1e-05"])
def test_learning_rate_is_a_number_however_written(here: Path, text: str) -> None:
    file = write(here / "more.yaml", f"update:\n  learning_rate: {text}\n")
    assert config.resolve("ppo", files=[file]).update.learning_rate == 1e-5
    assert config.resolve("ppo", overrides=[f"update.learning_rate={text}"]).update.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("text", "value"),
    [("010", 10), ("no", "no"), ("1:30", "1:30"), ("2026-01-01", "2026-01-01"), ("null", None), ("true", True)],
)
def test_scalars_mean_what_they_look_like(text: str, value: object) -> None:
    assert yaml_text.read(text) == value


def test_a_key_twice_is_refused_with_its_line(here: Path) -> None:
    file = write(here / "twice.yaml", "update:\n  steps: 3\n  steps: 4\n")
    assert "'steps' stands twice (line 3, column 3)" in message("ppo", files=[file])


@settings(max_examples=50)
@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()))
def test_yaml_reads_back_what_it_wrote_and_so_does_yaml_1_1(value: dict[str, object]) -> None:
    text = yaml_text.write(value)
    assert yaml_text.read(text) == value
    assert yaml.safe_load(text) == value


def test_layers_lie_in_order(here: Path) -> None:
    write(here / "experiments/mine.yaml", "extends: ppo\nupdate: {steps: 11, epochs: 3}\nreward: {noise: 0.5}\n")
    write(here / "experiments/presets/short.yaml", "update: {steps: 12}\nreward: {noise: 0.6}\n")
    file = write(here / "extra.yaml", "update: {steps: 13}\n")

    def steps(**options: object) -> int:
        return config.resolve("mine", **options).update.steps  # type: ignore[arg-type]

    assert config.resolve("ppo").update.steps not in (11, 12, 13)
    assert steps() == 11
    assert steps(preset="short") == 12
    assert steps(preset="short", files=[file]) == 13
    assert steps(preset="short", files=[file], overrides=["update.steps=14", "update.steps=15"]) == 15
    merged = config.resolve("mine", preset="short", files=[file])
    assert (merged.update.epochs, merged.reward.noise) == (3, 0.6)
    assert merged.reward.kl_coefficient == 0.05, "inherited from ppo"
    assert merged.experiment == "mine@short"


def test_null_switches_a_section_off_and_an_empty_one_takes_defaults(here: Path) -> None:
    assert config.resolve("safe-published").penalty == Penalty()
    assert config.resolve("safe", overrides=["penalty=null"]).penalty is None
    assert config.resolve("ppo", overrides=["penalty.gate=false"]).penalty == Penalty(gate=False)


def test_every_shipped_experiment_and_preset_resolves(here: Path) -> None:
    assert {"ppo", "safe"} <= {name for name, _ in config.experiments()}
    presets = [name for name, _ in config.presets()]
    assert {"smoke", "default", "stress-lr3", "stress-lr10", "stress-noise", "stress-shift", "paper"} <= set(presets)
    for name, description in [*config.experiments(), *config.presets()]:
        assert description, f"{name} says nothing about itself"
    for experiment, _ in config.experiments():
        assert config.resolve(experiment).experiment == experiment
        for preset in presets:
            settings = config.resolve(experiment, preset=preset)
            assert settings.experiment == (experiment if preset == "default" else f"{experiment}@{preset}")
            assert not config.differs(settings)
            assert config.resolve(settings.experiment) == settings


def test_presets_are_what_they_are_called(here: Path) -> None:
    plain, rate = config.resolve("ppo"), config.resolve("ppo").update.learning_rate
    assert config.resolve("ppo", preset="stress-lr3").update.learning_rate == pytest.approx(3 * rate, rel=1e-12)
    assert config.resolve("ppo", preset="stress-lr10").update.learning_rate == pytest.approx(10 * rate, rel=1e-12)
    assert config.resolve("ppo", preset="default") == plain
    assert config.resolve("ppo", preset="smoke").rollout.batch == 8
    assert config.expand_preset("stress") == ["stress-lr10", "stress-lr3", "stress-noise", "stress-shift"]
    assert config.expand_preset("smoke") == ["smoke"]
    assert config.expand_preset("default,stress,stress-lr3") == ["default", *config.expand_preset("stress")]
    assert config.expand_preset(None) == [None]
    paper = config.resolve("safe", preset="paper")
    released = (paper.model.name, paper.model.dtype, paper.model.lora.rank, paper.model.lora.alpha, paper.rollout.batch)
    assert released == ("qwen2.5-3b", "bfloat16", 128, 128, 16)
    assert (paper.update.epochs, paper.update.steps, paper.rollout.reply_tokens) == (2, 2000, 128)
    assert (paper.update.learning_rate, paper.prompts.name, paper.prompts.limit) == (1e-5, "hh-rlhf", 5000)
    assert paper.reward.name == "armorm"


def test_all_faults_at_once_each_with_key_value_and_origin(here: Path) -> None:
    file = write(here / "bad.yaml", "critic: {heads: triple}\nloss: {clip: .inf}\npenalty: 3\n")
    wrong = ["update.learningrate=1", "update.steps=0", "update.epochs=true", "model.name=qwen2.5-3", "steps", "lr=2"]
    wrong += ["rollout.batch=7", "update.minibatches=3", "recording.trackers=[wandbb]", "learning_rate=1e-4"]
    text = message("safe", files=[file], overrides=wrong)
    assert text.splitlines()[0] == "12 faults in the settings of safe:"
    for line in (
        "--set 'steps': write key.path=value",
        "update.epochs = true: must be a number (command line)",
        "update.learningrate = 1: unknown key; did you mean update.learning_rate? (command line)",
        "learning_rate = 0.0001: unknown key; did you mean update.learning_rate? (command line)",
        "lr = 2: unknown key",
        "update.steps = 0: must be greater than 0 (command line)",
        f"critic.heads = 'triple': must be 'single' or 'double' ({file})",
        f"loss.clip = inf: must be a finite number ({file})",
        f"penalty = 3: is a section: give its keys ({file})",
        "rollout.batch (7) must be a multiple of update.minibatches (3)",
        "model.name = qwen2.5-3: unknown; did you mean qwen2.5-3b? (command line)",
        "recording.trackers = wandbb: unknown; did you mean wandb? (command line)",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("saef", "no experiment 'saef'; did you mean safe?"),
        ("xyzzy", "no experiment 'xyzzy'; there are grpo, "),
        ("_base", "no experiment '_base'"),
        ("nowhere.yaml", "no experiment file nowhere.yaml"),
        ("ppo@smok", "no preset 'smok'; did you mean smoke?"),
    ],
)
def test_unknown_names_get_the_nearest_match(here: Path, name: str, expected: str) -> None:
    assert message(name).startswith(expected)


def test_two_presets_are_refused(here: Path) -> None:
    assert "names one preset and --preset paper another" in message("ppo@smoke", preset="paper")
    assert config.resolve("ppo@smoke", preset="smoke") == config.resolve("ppo", preset="smoke")


def test_broken_files_are_named(here: Path) -> None:
    loop = write(here / "experiments/loop.yaml", "extends: pool\n")
    write(here / "experiments/pool.yaml", "extends: loop\n")
    assert f"goes round in a circle: loop < pool < loop ({loop})" in message("loop")
    write(here / "experiments/lost.yaml", "extends: ppoo\n")
    assert "no experiment 'ppoo'; did you mean ppo?" in message("lost")
    write(here / "experiments/list.yaml", "- 1\n")
    assert "holds no keys and values" in message("list")
    write(here / "experiments/torn.yaml", "update: {steps: [1\n")
    assert "not valid YAML" in message("torn")
    assert "not valid YAML" in dict(config.experiments())["torn"], "listing goes on"
    assert "missing.yaml: cannot be read: No such file or directory" in message("ppo", files=["missing.yaml"])


def test_hash_covers_what_is_computed_and_nothing_else(here: Path) -> None:
    plain = config.resolve("ppo")
    steps, digest = plain.update.steps, config.settings_hash(plain)
    assert len(digest) == 8
    assert int(digest, 16) >= 0
    for same in ("seed=7", "recording.samples=1", "compute.threads=2", "description=other", f"update.steps={steps}.0"):
        assert config.settings_hash(config.resolve("ppo", overrides=[same])) == digest, same
    for other in (f"update.steps={steps + 1}", "reward.noise=0.1", "evaluation.every=7", "model.random_weights=true"):
        assert config.settings_hash(config.resolve("ppo", overrides=[other])) != digest, other


@pytest.mark.parametrize(
    ("experiment", "overrides", "expected"),
    [
        ("ppo", [], "embedded/ppo/seed-0"),
        ("ppo", ["seed=3", "compute.threads=2"], "embedded/ppo/seed-3"),
        ("ppo", ["model.name=qwen2.5-3b"], "qwen2.5-3b/ppo/seed-0"),
        ("ppo", ["model.name=Qwen/Qwen2.5-3B"], "Qwen--Qwen2.5-3B/ppo/seed-0"),
        ("safe@smoke", ["update.steps=4"], "embedded/safe@smoke/seed-0"),
    ],
)
def test_run_folder(here: Path, experiment: str, overrides: list[str], expected: str) -> None:
    assert config.run_folder("results", config.resolve(experiment, overrides=overrides)) == Path("results") / expected


def test_run_folder_of_changed_settings_carries_their_hash(here: Path) -> None:
    shipped = config.resolve("ppo")
    changed = config.resolve("ppo", overrides=[f"update.steps={shipped.update.steps + 1}"])
    assert config.run_folder("r", changed) == Path(f"r/embedded/ppo-{config.settings_hash(changed)}/seed-0")
    assert config.changes(changed, shipped) == [("update.steps", shipped.update.steps, changed.update.steps)]


def test_models_in_two_directories_of_one_name_do_not_share_a_folder(here: Path) -> None:
    (here / "a/model").mkdir(parents=True)
    (here / "b/model").mkdir(parents=True)
    folders = {config.run_folder("r", config.resolve("ppo", overrides=[f"model.name=./{x}/model"])) for x in "ab"}
    assert len(folders) == 2
    assert all(folder.parts[1].startswith("model-") for folder in folders)


@pytest.mark.parametrize("name", ["../../etc", "a b", "", ".hidden", "x/y", "ü"])
def test_names_are_fit_for_a_file_system(name: str) -> None:
    safe = config.safe_name(name)
    assert safe
    assert not safe.startswith(".")
    assert "/" not in safe


def test_an_experiment_in_a_file_of_ones_own(here: Path) -> None:
    file = write(here / "mine.yaml", "algorithm: ppo\nupdate: {steps: 9}\n")
    settings = config.resolve(str(file))
    assert (settings.experiment, settings.update.steps) == ("mine", 9)
    assert settings.rollout == config.resolve("ppo").rollout, "_base lies below every experiment"
    assert config.run_folder("r", settings).parts[2] == f"mine-{config.settings_hash(settings)}"


def test_a_run_config_can_be_run_again(here: Path) -> None:
    settings = config.resolve("safe@smoke", overrides=["seed=3", "description='1e-5'", "penalty.gate=false"])
    path = write(here / "config.yaml", config.dump(settings))
    assert config.load(path) == settings
    assert config.resolve(str(path)) == settings


def test_config_of_another_experiment_is_refused(here: Path) -> None:
    path = write(here / "config.yaml", config.dump(config.resolve("safe")))
    assert "experiment: 'safe', but the command names 'ppo'" in message("ppo", files=[path])


@settings(max_examples=30)
@given(st.text(max_size=20), st.floats(min_value=1e-12, max_value=1e6), st.integers(0, 2**40), st.booleans())
def test_dump_reads_back(description: str, rate: float, seed: int, gate: bool) -> None:
    value = Settings.model_validate(
        {"experiment": "x", "algorithm": "safe", "seed": seed, "description": description,
         "update": {"learning_rate": rate}, "penalty": {"gate": gate}}
    )  # fmt: skip
    assert Settings.model_validate(yaml_text.read(config.dump(value))) == value


def test_the_command_of_a_run_gives_its_settings_again() -> None:
    changed = ["update.learning_rate=0.01", "reward.judge=null", "model.lora.targets=[q_proj]", "seed=3"]
    for experiment in ("safe", "ppo@stress-noise"):
        settings = config.resolve(experiment, overrides=changed)
        words = config.command(settings)
        assert words[:5] == ["safebench", "run", experiment, "--seeds", "3"]
        overrides = [*(word for word in words[5:] if word != "--set"), "seed=3"]
        assert config.resolve(experiment, overrides=overrides) == settings


def test_the_command_of_an_experiment_from_a_file_needs_no_file(tmp_path: Path) -> None:
    tuned = {
        **{"experiment": "safe", "preset": None, "criterion": "judge_final", "sampler": "halton", "seeds": [1000]},
        **{"points": 2, "runs": 2, "steps": 8, "tokens": 9, "seconds": 1.0},
    }
    for name, content, base in (
        ("mine", {"extends": "ppo-matched", "update": {"learning_rate": 0.02}}, "ppo"),
        ("safe-tuned", {"extends": "safe", "penalty": {"coefficient": 0.3}, "tuned": tuned}, "safe"),
    ):
        file = tmp_path / f"{name}.yaml"
        file.write_text(json.dumps({**content, "experiment": name, "description": "from a file"}), encoding="utf-8")
        settings = config.resolve(str(file), overrides=["seed=3"])
        words = config.command(settings)
        assert words[:5] == ["safebench", "run", base, "--seeds", "3"]
        again = config.resolve(base, overrides=[*(word for word in words[5:] if word != "--set"), "seed=3"])
        assert config.settings_hash(again) == config.settings_hash(settings)


def test_a_former_key_is_read_in_a_runs_file_and_named_anew_in_an_experiment(here: Path) -> None:
    resolved = config.resolve("safe")
    older = {("arm" if key == "algorithm" else key): value for key, value in resolved.model_dump(mode="json").items()}
    file = write(here / "config.yaml", yaml_text.write(older))
    assert config.load(file) == resolved
    mine = write(here / "mine.yaml", "extends: _base\narm: safe\n")
    with pytest.raises(UsageError, match=r"arm = 'safe': unknown key; did you mean algorithm\?"):
        config.resolve(str(mine))
