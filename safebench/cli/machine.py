"""``doctor``: what this machine can run, and why not."""

from __future__ import annotations

from pathlib import Path

from safebench import doctor as diagnosis
from safebench.cli.tables import columns
from safebench.estimate import readable
from safebench.settings import Settings

MARKS = {True: "ok", False: "no", None: "-"}


def doctor(online: bool, results: Path) -> int:
    """Print what this machine can run and why not; return 3 where even the embedded run cannot be had, else 0."""
    found = list(diagnosis.checks(results, online))
    print(columns([(MARKS[check.ok], check.name, check.text) for check in found]))
    print()
    rows = [("", "MODEL", "NEEDS", "")]
    for verdict in diagnosis.verdicts():
        needs = "?" if verdict.needs is None else readable(verdict.needs)
        rows.append((MARKS[verdict.ok], verdict.name, needs, verdict.text))
    print(columns(rows))
    print()
    print("Needs are estimates for ppo; models from the hub with the preset that --model takes by itself.")
    print("--random-weights needs no download.")
    return 3 if any(check.ok is False for check in found) else 0


def own_things(settings: Settings) -> int:
    """Print each check of the user's own model, reward and prompts as it is made; return 3 where one fails, else 0."""
    failed = False
    for check in diagnosis.own_checks(settings):
        print(f"{MARKS[check.ok]:2}  {check.name:22}  {check.text}", flush=True)
        failed = failed or check.ok is False
    return 3 if failed else 0
