"""A run made before a setting was there compares as the run that it would be now."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from safebench import config
from safebench.analysis import compare, fairness, runs
from safebench.analysis.fairness import filled, flatten
from safebench.analysis.runs import Run
from tests.support.claims_runs import with_settings
from tests.support.synthetic import healthy, write_run

NEWER = ("critic.init", "update.preview", "prompts.max_tokens", "model.lora.dropout", "evaluation.prompts")


def before(run: Run) -> Run:
    """The same run, of a time when some settings at their defaults were not there yet."""
    older = with_settings(run)
    for key in NEWER:
        *path, last = key.split(".")
        place = older.settings
        for name in path:
            place = place[name]
        del place[last]  # type: ignore[attr-defined]
    return older


@pytest.mark.parametrize("name", [name for name, _ in config.experiments()])
def test_whatever_is_missing_is_what_loading_gives(tmp_path: Path, name: str) -> None:
    run = runs.read(write_run(tmp_path, name, 0, {"kl/mean": [None, 0.1]}))
    settings = config.load(run.folder / "config.yaml")
    whole = flatten(settings.model_dump(mode="json"))
    least = replace(run, settings=settings.model_dump(mode="json", exclude_defaults=True))
    assert len(flatten(least.settings)) < len(whole) / 2
    expected = whole | {"compute.replicate": 0}  # which is written only where it is on
    assert filled(least) == expected
    assert filled(run) == expected and flatten(run.settings) == whole, "what is there stays"


def test_a_section_that_is_off_stays_off(tmp_path: Path) -> None:
    run = runs.read(write_run(tmp_path, "ppo", 0, healthy(0, 20)))
    assert not [key for key in filled(run) if key.startswith(("penalty.", "update.preview."))]
    assert filled(run)["penalty"] is None
    plain = with_settings(run, {"model.lora": None})
    assert not [key for key in filled(plain) if key.startswith("model.lora.")]
    older = replace(run, settings={key: value for key, value in run.settings.items() if key != "penalty"})
    assert filled(older) == filled(run)


def test_runs_from_before_a_setting_compare_with_those_after_it(tmp_path: Path) -> None:
    plain = ["prompts.max_tokens=48"]
    groups = {
        arm: [runs.read(write_run(tmp_path, arm, seed, healthy(seed, 20), overrides=plain)) for seed in range(3)]
        for arm in ("ppo", "safe")
    }
    groups["ppo"][1:] = [before(run) for run in groups["ppo"][1:]]
    groups["safe"][0] = before(groups["safe"][0])
    assert "differ among themselves" not in str(fairness.mismatches(groups, [0, 1, 2]))
    assert compare.compare(groups).unmatched == ()
    other = with_settings(groups["ppo"][2], {"prompts.max_tokens": 32})
    groups["ppo"][2] = other
    assert "differ among themselves in prompts.max_tokens" in str(fairness.mismatches(groups, [0, 1, 2]))


def test_an_imported_run_has_only_what_is_known(tmp_path: Path) -> None:
    run = runs.read(write_run(tmp_path, "ppo", 0, healthy(0, 20)))
    known = replace(run, settings={"algorithm": "trl-ppo"}, manifest={**run.manifest, "foreign": {}})
    assert filled(known) == {"algorithm": "trl-ppo"}
