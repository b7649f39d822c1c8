"""What to install where TRL or Optuna is missing, or TRL has lost its PPO trainer: errors, each with one sentence that
helps.
"""

from __future__ import annotations

from safebench.errors import MissingResource

LAST_WITH_PPO = "1.12.0"
"""The last release of TRL with a PPO trainer; 1.13.0 removed it."""

INSTALL = f'Install it with: pip install "trl=={LAST_WITH_PPO}"'


def without_trl(what: str) -> MissingResource:
    """Return the error for ``what``, which needs TRL, where there is none."""
    return MissingResource(f"{what} needs TRL, which is not installed", INSTALL)


def without_ppo(what: str, version: str) -> MissingResource:
    """Return the error for ``what``, which needs TRL's PPO, where TRL is of a ``version`` without."""
    return MissingResource(
        f"{what} needs TRL's PPO trainer, and TRL {version} has none: {LAST_WITH_PPO} is the last release that has it",
        INSTALL,
    )


def without_trainer(what: str, name: str, version: str) -> MissingResource:
    """Return the error for ``what``, where the installed TRL lacks the trainer that it needs."""
    return MissingResource(
        f"{what} needs TRL's {name}, and TRL {version} has none: {LAST_WITH_PPO} is known to have it", INSTALL
    )


def without_optuna(what: str) -> MissingResource:
    """Return the error for ``what``, which needs Optuna, where there is none."""
    return MissingResource(
        f"{what} needs Optuna, which is not installed",
        'Install it with: pip install "optuna>=4" (the extra tune), '
        f"or leave {what} out: Halton's points need nothing more.",
    )
