"""Evaluate every claim on the available runs: the result, the missing runs, and the command that makes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from safebench.analysis import fairness
from safebench.analysis.claims.questions import CLAIMS, MATCHED_TO, unlike
from safebench.analysis.claims.verdicts import Case, Claim, Entry, Finding, Ledger, broken, enough
from safebench.analysis.compare import at_matched_kl
from safebench.analysis.runs import Run
from safebench.analysis.scalars import Summary, summarise
from safebench.analysis.statistics import ALPHA
from safebench.crashes.detect import SPEC
from safebench.crashes.signals import CrashSpec
from safebench.errors import UsageError

LONG = "@long"
"""Suffix of the name of a group whose runs are of the preset ``long``."""


NO_RUN = ": no run"
"""Text for a group that has none of the wanted seeds."""


def seeds_text(seeds: Iterable[int]) -> str:
    """Return seeds in the form of the command line: ``0-4``, ``0,2,7-9``."""
    spans: list[list[int]] = []
    for seed in sorted(set(seeds)):
        if spans and seed == spans[-1][1] + 1:
            spans[-1][1] = seed
        else:
            spans.append([seed, seed])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in spans)


def filled(seeds: Iterable[int], least: int) -> list[int]:
    """Return the seeds, extended by the smallest other seeds to at least ``least`` seeds."""
    found = sorted(set(seeds))
    spare = (seed for seed in range(len(found) + least) if seed not in found)
    return sorted([*found, *(next(spare) for _ in range(least - len(found)))])


def command(groups: Sequence[str], seeds: Sequence[int], options: str = "", preset: str | None = None) -> str:
    """Return the command that makes ``seeds`` of the experiments; ``&&`` joins those of another preset.

    The command leaves existing runs unchanged. ``preset`` is that of the groups without ``@long``; ``options`` are
    added unchanged.
    """
    plain = [group for group in groups if not group.endswith(LONG)]
    long = [group.removesuffix(LONG) for group in groups if group.endswith(LONG)]
    lines = [
        f"safebench run {' '.join(names)}{chosen} --seeds {seeds_text(seeds)} {options}"
        for names, chosen in ((plain, f" --preset {preset}" if preset else ""), (long, " --preset long"))
        if names
    ]
    return " && ".join(line.rstrip() for line in lines)


def lacking(groups: Sequence[str], there: Mapping[str, Iterable[int]], wanted: Sequence[int]) -> list[str]:
    """Return, in words, what each group lacks of the wanted seeds."""
    told = []
    for group in groups:
        missing = sorted(set(wanted) - set(there[group]))
        if missing:
            some = f"seed{'s' * (len(missing) > 1)} {seeds_text(missing)}"
            told.append(f"{group}: {some}" if len(missing) < len(set(wanted)) else f"{group}{NO_RUN}")
    return told


UNTESTED = (8, 9)
"""Claims that are checked run by run; no test over seeds supports their verdicts."""


def notes(entries: Sequence[Entry], groups: Mapping[str, Sequence[Summary]], spec: CrashSpec) -> tuple[str, ...]:
    """Return the lines under the ledger."""
    tested = [entry for entry in entries if entry.verdict != "not shown" and entry.claim.number not in UNTESTED]
    lines = [
        f"A verdict takes a 95 % t-interval and the exact sign-flip test alike (crash-shaped figures: the exact test "
        f"alone), on either side; below {enough()} pairs there is none. docs/claims.md says why.",
        f"Verdicts that rest on a test: {len(tested)}, each at 5 %, not corrected for one another.",
        f"Crash specification {spec.version}. Figures are arm − opponent (costs: arm / opponent) by seed, at 95 %.",
    ]
    return (*lines, *_loud(entries, groups), *_unstable(groups))


def _loud(entries: Sequence[Entry], groups: Mapping[str, Sequence[Summary]]) -> list[str]:
    """Return one line per pair of arms with the settings that can decide a comparison by themselves."""
    pairs = dict.fromkeys((e.arm, e.opponent) for e in entries if e.claim.against == "opponent" and e.seeds)
    lines = []
    for arm, opponent in pairs:
        sides = {name: [s.run for s in groups[name]] for name in (arm, opponent) if name}
        loud = dict.fromkeys(item.loud for item in fairness.differences(sides) if item.loud)
        if loud:
            lines.append(f"{arm} and {opponent} also differ in {', '.join(loud)}, which may decide by itself.")
    return lines


def _unstable(groups: Mapping[str, Sequence[Summary]]) -> list[str]:
    ended = {name: broken(found) for name, found in groups.items()}
    told = "and stays in, as far as it went."
    return [f"{name} ended unstable in {seeds}, {told}" for name, seeds in ended.items() if seeds]


Groups = Mapping[str, Sequence[Run]]
OTHER_PRESET = "long runs are of no other preset: ask without one"


@dataclass(frozen=True)
class _Study:
    """The summaries by group, the request, and the command line's other options."""

    groups: Mapping[str, tuple[Summary, ...]]
    matched_to: Mapping[str, Sequence[str]]
    seeds: tuple[int, ...] | None
    options: str
    preset: str | None

    def runs(self, group: str) -> tuple[Summary, ...]:
        return self.groups.get(group, ())

    def have(self, group: str) -> list[int]:
        return [summary.run.seed for summary in self.runs(group)]


def needed(matched_to: Mapping[str, Sequence[str]] = MATCHED_TO) -> tuple[str, ...]:
    """Return the names of all groups that a ledger can use, ``@long`` ones last."""
    asked = [group for claim in CLAIMS for question in _questions(claim, matched_to) for group in question if group]
    asked += [f"{other}{LONG}" for others in matched_to.values() for other in others]
    return tuple(sorted(dict.fromkeys(asked), key=lambda group: group.endswith(LONG)))


def ledger(
    groups: Groups,
    *,
    matched_to: Mapping[str, Sequence[str]] = MATCHED_TO,
    seeds: Iterable[int] | None = None,
    preset: str | None = None,
    options: str = "",
    spec: CrashSpec = SPEC,
) -> Ledger:
    """Evaluate every claim for each arm in ``matched_to``, against each of its opponents if the claim has one.

    ``groups`` holds complete runs by experiment; the name of a group of the preset ``long`` ends with ``@long``. Groups
    that are not needed are ignored, and an incomplete run counts as missing. ``seeds`` (default: all that the runs of a
    question have) are those that every run of a question must have before a verdict is given. ``preset`` is that of the
    groups without ``@long``; with ``options`` it is part of the commands. Raises ``UsageError`` if a group has several
    runs of one seed.
    """
    wanted = None if seeds is None else tuple(sorted(set(seeds)))
    used = {name: _summaries(name, groups.get(name, ()), wanted, spec) for name in needed(matched_to)}
    study = _Study(used, matched_to, wanted, options, preset)
    entries = [_entry(claim, one, two, study) for claim in CLAIMS for one, two in _questions(claim, matched_to)]
    rested = sorted({seed for entry in entries for seed in entry.seeds})
    return Ledger(tuple(entries), spec, tuple(rested), notes(entries, used, spec))


def _summaries(name: str, runs: Sequence[Run], seeds: Sequence[int] | None, spec: CrashSpec) -> tuple[Summary, ...]:
    chosen = [run for run in runs if run.complete and (seeds is None or run.seed in seeds)]
    found = [run.seed for run in chosen]
    if len(set(found)) < len(found):
        raise UsageError(f"{name} has several runs of one seed", "Give one folder of runs for each experiment.")
    return tuple(summarise(run, spec) for run in sorted(chosen, key=lambda run: run.seed))


def _questions(claim: Claim, matched_to: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """Return the groups that the claim needs: the arm's, and the one it is compared to (empty: none)."""
    if claim.against == "opponent":
        return [(arm, other) for arm, others in matched_to.items() for other in others]
    if claim.against == "ablation":
        return [(arm, claim.ablations.get(arm, "")) for arm in matched_to]
    return [(f"{arm}{LONG}", arm) if claim.against == "length" else (arm, "") for arm in matched_to]


def _entry(claim: Claim, one: str, two: str, study: _Study) -> Entry:
    arm = one.removesuffix(LONG)
    if claim.against == "length" and study.preset:
        return Entry(claim, arm, None, "not shown", OTHER_PRESET, (), (), (), "safebench claims")
    names = [name for name in (one, two) if name]
    wanted = sorted({seed for name in names for seed in study.have(name)} if study.seeds is None else study.seeds)
    matched, _ = at_matched_kl({one: study.runs(one), two: study.runs(two)})
    case = Case(one, two, matched[one], matched[two], _context(claim, arm, study))
    finding = claim.measure(case)
    if reason := _unlike(claim, case, names):
        # Figures are computed pair by pair; unpaired runs have none.
        finding = Finding("not shown", f"not comparable: {reason}", finding.parts if _paired(case) else ())
    if not case.pairs and claim.against == "opponent":
        finding = Finding("not shown", finding.why)
    least = 1 if claim.against == "itself" else enough(ALPHA / claim.tests)
    target = filled(wanted, least if wanted else max(least, enough()))
    missing = lacking(names, {name: study.have(name) for name in names}, target)
    if claim.against == "ablation" and not two:
        missing.append(f"no experiment leaves this out of {arm}")
    if missing and not finding.certain:
        finding = Finding("not shown", _why_missing(names, wanted, study, finding, claim, two), finding.parts)
    settled = not missing or finding.certain
    making = names if settled else [name for name in names if set(target) - set(study.have(name))] or names
    return Entry(
        claim=claim,
        arm=arm,
        opponent=two if claim.against in ("opponent", "ablation") and two else None,
        verdict=finding.verdict,
        why=finding.why,
        parts=finding.parts,
        seeds=tuple(_rests_on(case, claim, finding)),
        missing=() if settled else tuple(missing),
        command=command(making, wanted if settled else target, study.options, study.preset),
    )


def _why_missing(
    names: Sequence[str], wanted: Sequence[int], study: _Study, finding: Finding, claim: Claim, two: str
) -> str:
    """Return which runs are missing; if none are missing but there are too few, return the finding's own reason."""
    gaps = lacking(names, {name: study.have(name) for name in names}, wanted)
    absent = [name for name in names if not study.runs(name)]
    if absent:
        return f"no runs of {' and '.join(absent)}"
    if claim.against == "ablation" and not two:
        return "its penalty was not seen inert in every run, and no experiment leaves this part out of it"
    return f"runs are missing ({'; '.join(gaps)}); {finding.why}" if gaps else finding.why


def _unlike(claim: Claim, case: Case, names: Sequence[str]) -> str:
    """Return why the runs may not be compared, or are not of one setting; empty if they may be compared."""
    groups = {name: [s.run for s in found] for name, found in ((case.arm, case.first), (case.other, case.second))}
    present = {name: runs for name, runs in groups.items() if name in names and runs}
    if claim.against in ("length", "itself"):
        return "; ".join(reason for name, runs in present.items() for reason in fairness.mismatches({name: runs}, []))
    if len(present) < 2:
        return ""
    shared = [pair[0].run.seed for pair in case.pairs]
    reasons = fairness.mismatches(present, shared)
    if not _paired(case):
        reasons.append("one of the arms samples otherwise, and is not paired by seed")
    if claim.against == "ablation" and (keys := unlike(claim, case)):
        reasons.append(f"the arms differ in more than the part left out: {keys}")
    return "; ".join(reasons)


def _paired(case: Case) -> bool:
    """Return whether a seed gives the same first batch in both arms; True for runs of one arm by itself."""
    return not case.second or all(summary.run.paired for summary in (*case.first, *case.second))


def _rests_on(case: Case, claim: Claim, finding: Finding) -> list[int]:
    if claim.against in ("length", "itself") or (finding.certain and not case.second):
        return [summary.run.seed for summary in case.first]
    return [first.run.seed for first, _ in case.pairs]


def _context(claim: Claim, arm: str, study: _Study) -> dict[str, tuple[Summary, ...]]:
    if claim.against != "length":
        return {}
    return {other: study.runs(f"{other}{LONG}") for other in study.matched_to[arm]}
