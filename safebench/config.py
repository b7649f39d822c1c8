"""Settings from YAML and the command line: layered, checked, hashed; all faults at once."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from safebench import catalog, faults, yaml_text
from safebench.errors import BadResource, UsageError
from safebench.layers import Fault, Path_, Stack, chain, is_path, locate, names, read_mapping
from safebench.names import nearest
from safebench.settings import Settings

DEFAULT = "default"
NOT_OF_THE_RUN = frozenset({"seed", "experiment", "description", "trust_remote_code", "recording", "compute", "tuned"})
"""Keys that do not change what a run computes, so the hash leaves them out; of ``compute`` all but ``replicate``."""

COMMAND_LINE = "command line"
"""What ``Layers.stack`` names as the source of an override."""

_LATER = (("reward", "label"), ("reward", "judge_label"))
"""Keys that older runs do not have. Unset, they are not in the hash, so that those keep their folder."""

_UNSAFE = re.compile(r"[^A-Za-z0-9._@+-]+")


@dataclass(frozen=True)
class Layers:
    """The layers of an experiment, laid but not yet checked. ``tuning`` is a section that no run reads."""

    stack: Stack
    tuning: Any = None


def resolve(
    experiment: str,
    *,
    preset: str | None = None,
    files: Sequence[str | Path] = (),
    overrides: Sequence[str] = (),
) -> Settings:
    """Return the settings of ``experiment``: base < experiment < preset < files < overrides.

    ``experiment`` is a name, ``name@preset`` or the path of a YAML file; an override reads
    ``key.path=value``. Raises ``UsageError`` naming every fault with its key, value and origin.
    """
    return _resolve(experiment, preset, files, overrides, check_names=True)


def _resolve(
    experiment: str, preset: str | None, files: Sequence[str | Path], overrides: Sequence[str], check_names: bool
) -> Settings:
    return validated(lay(experiment, preset, files, overrides).stack, experiment, check_names)


def lay(experiment: str, preset: str | None, files: Sequence[str | Path], overrides: Sequence[str]) -> Layers:
    """Return the layers of ``experiment`` as ``resolve`` lays them, its ``tuning`` section apart."""
    stack = Stack()
    name, preset = _split(experiment, preset)
    path = _experiment_path(name)
    parts = chain(path, stack)
    for file, content in parts:
        stack.lay(content, file.name)
    title = _title(name, stack)
    _lay_preset(stack, preset)
    if _tuned_with(preset, parts[-1][1]):
        # The values were chosen under this preset, so that they stand in place of the preset's own.
        content = {key: value for key, value in parts[-1][1].items() if key != "experiment"}
        stack.lay(content, parts[-1][0].name)
    for extra in files:
        stack.lay(read_mapping(Path(extra), stack), str(extra))
    for override in overrides:
        _lay_override(stack, override)
    _refuse_another_experiment(stack, title)
    stack.values["experiment"] = title if preset is None else f"{title}@{preset}"
    return Layers(stack, stack.values.pop("tuning", None))


def own_preset(model: str, device: str) -> str:
    """Return the preset that another model than the embedded one takes by itself on a device, ``cuda`` or ``cpu``."""
    known = next((entry.preset for entry in catalog.entries("models") if entry.name == model), "large")
    return known if device == "cuda" else f"{known}-cpu"


def settings_hash(settings: Settings) -> str:
    """Return eight hex digits of what the run computes, whatever its seed, name, recording and device."""
    content = settings.model_dump(mode="json", exclude=set(NOT_OF_THE_RUN))
    for section, key in _LATER:
        if content[section][key] is None:
            del content[section][key]
    if settings.compute.replicate:
        content["compute"] = {"replicate": settings.compute.replicate}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def shipped(settings: Settings) -> Settings | None:
    """Return the named experiment as its file has it, for the same model and seed; None if no file has that name."""
    name, preset = _split(settings.experiment, None)
    if locate(name) is None or (preset is not None and locate(preset, "presets") is None):
        return None
    same = [f"model.name={json.dumps(settings.model.name)}", f"seed={settings.seed}"]
    return _resolve(name, preset, (), same, check_names=False)


def differs(settings: Settings) -> bool:
    """Say whether the settings compute something else than the named experiment as shipped."""
    original = shipped(settings)
    return original is None or settings_hash(original) != settings_hash(settings)


def changes(settings: Settings, original: Settings) -> list[tuple[str, Any, Any]]:
    """Return (key, original value, value) for every key in which the two differ."""
    before, after = dict(_leaves(original)), dict(_leaves(settings))
    keys = dict.fromkeys([*before, *after])
    return [(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]


def command(settings: Settings) -> list[str]:
    """Return the command line that makes this run, whoever started it: experiment, seed, and what differs.

    An experiment that no folder of experiments has, such as a tuned one, is told as one of the same arm that they have,
    with every setting in which the two differ: the run is the same but for its name.
    """
    named, original = settings, shipped(settings)
    if original is None:
        named = settings.model_copy(update={"experiment": _relative(settings)})
        original = shipped(named)
    words = ["safebench", "run", named.experiment, "--seeds", str(settings.seed)]
    if original is None:
        return words
    if settings.model.name != "embedded":
        words += ["--model", settings.model.name]
    for key, _, value in changes(settings, original):
        if key.partition(".")[0] not in ("experiment", "description", "tuned"):
            words += ["--set", f"{key}={json.dumps(value)}"]
    return words


def _relative(settings: Settings) -> str:
    """Return the name of the experiment that a nameless one was tuned from, or of one with the same arm."""
    if settings.tuned is not None:
        preset = f"@{settings.tuned.preset}" if settings.tuned.preset else ""
        return f"{settings.tuned.experiment}{preset}"
    resolved = ((name, _resolve(name, None, (), (), check_names=False)) for name in names())
    return next((name for name, other in resolved if other.arm == settings.arm), settings.experiment)


def run_folder(root: str | Path, settings: Settings) -> Path:
    """Return <root>/<model>/<experiment>[-<hash>]/seed-<n>, the model and experiment made fit for a file system."""
    name = safe_name(settings.experiment)
    if differs(settings):
        name += f"-{settings_hash(settings)}"
    return Path(root) / model_folder(settings.model.name) / name / f"seed-{settings.seed}"


def model_folder(model: str) -> str:
    """Return the folder name of a model; a directory's carries a hash of its path, so that no two share one."""
    entry_name = safe_name(model.replace("/", "--"))
    if not Path(model).expanduser().is_dir() or any(entry.name == model for entry in catalog.MODELS):
        return entry_name
    place = Path(model).expanduser().resolve()
    return f"{safe_name(place.name)}-{hashlib.sha256(str(place).encode()).hexdigest()[:4]}"


def safe_name(text: str) -> str:
    """Return ``text`` with everything but letters, digits and ``._@+-`` replaced, never hidden or empty."""
    return _UNSAFE.sub("-", text).lstrip(".-") or "unnamed"


def dump(settings: Settings) -> str:
    """Return all settings as YAML that ``load`` reads back to an equal value."""
    return yaml_text.write(settings.model_dump(mode="json"))


def load(path: str | Path) -> Settings:
    """Return the settings that a run's ``config.yaml`` holds.

    Raises ``BadResource`` where the file is damaged, or of a version of safebench with other settings than this one.
    """
    path, stack = Path(path), Stack()
    stack.lay(read_mapping(path, stack), str(path))
    if stack.faults:
        wrong = "; ".join(map(str, stack.faults))
        raise BadResource(f"the run in {path.parent} is damaged: {wrong}", "Start it again with --if-exists overwrite.")
    settings, found = faults.validate(Settings, stack)
    if settings is None or found:
        raise _other_version(path.parent, found)
    return settings


def _other_version(folder: Path, found: Sequence[Fault]) -> BadResource:
    """Return the error of a run folder whose settings are not those of this version: nobody wrote them by hand."""
    here, made = version("safebench"), _made_by(folder)
    if made is None or made == here:
        also = ", though its manifest names the same" if made else ""
        maker = f"another version of safebench than this one, {here}{also}"
    else:
        maker = f"safebench {made}, and this is safebench {here}"
    unknown = [fault.key for fault in found if fault.message.startswith(faults.UNKNOWN)]
    others = [str(fault) for fault in found if not fault.message.startswith(faults.UNKNOWN)]
    said = [f"this version does not know {', '.join(unknown)}"] if unknown else []
    return BadResource(
        f"the run in {folder} was made by {maker}: {'; '.join([*said, *others])}",
        "Use the version that made it, or keep new runs apart with --results DIR.",
    )


def _made_by(folder: Path) -> str | None:
    """Return the version of safebench that the run's manifest names; None where it names none."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        return str(manifest["versions"]["safebench"])
    except (OSError, ValueError, KeyError, TypeError):  # not there, or not as this version writes it
        return None


def experiments() -> list[tuple[str, str]]:
    """Return name and description of every experiment."""
    return [(name, _description(path)) for name, path in names().items()]


def presets() -> list[tuple[str, str]]:
    """Return name and description of every preset."""
    return [(name, _description(path)) for name, path in names("presets").items()]


def expand_preset(name: str | None) -> list[str | None]:
    """Return the presets that ``name`` stands for: ``stress`` is every preset called ``stress-…``, ``a,b`` are two."""
    if name is None:
        return [None]
    return list(dict.fromkeys(preset for part in name.split(",") for preset in _family(part.strip())))


def _family(name: str) -> list[str]:
    if not name:
        raise UsageError("an empty preset", hint="Write one name, or several with commas between: default,stress.")
    if locate(name, "presets") is not None:
        return [name]
    return [preset for preset in names("presets") if preset.startswith(f"{name}-")] or [name]


def _split(experiment: str, preset: str | None) -> tuple[str, str | None]:
    """Separate ``name@preset`` and drop the empty preset."""
    if is_path(experiment):
        name, own = experiment, ""
    else:
        name, _, own = experiment.partition("@")
    if own and preset not in (None, DEFAULT, own):
        raise UsageError(f"{experiment} names one preset and --preset {preset} another", hint="Give one of the two.")
    chosen = own or preset
    return name, None if chosen in (None, DEFAULT) else chosen


def _experiment_path(name: str) -> Path:
    if is_path(name):
        if not Path(name).is_file():
            raise UsageError(f"no experiment file {name}", hint="`safebench experiments` lists the named ones.")
        return Path(name)
    found = locate(name)
    if found is None or name.startswith("_"):
        known = list(names())
        near = nearest(name, known)
        advice = f"did you mean {near}?" if near else f"there are {', '.join(known) or 'none'}"
        raise UsageError(f"no experiment {name!r}; {advice}", hint="`safebench experiments` lists them.")
    return found


def _title(name: str, stack: Stack) -> str:
    """Return the experiment's own name: the name asked for, or for a file what it says or is called."""
    said = stack.values.pop("experiment", None)
    if not is_path(name):
        return name
    return said if isinstance(said, str) and said else Path(name).stem


def _lay_preset(stack: Stack, preset: str | None) -> None:
    if preset is None:
        return
    path = locate(preset, "presets")
    if path is None:
        known = list(names("presets"))
        near = nearest(preset, known)
        advice = f"did you mean {near}?" if near else f"there are {', '.join(known) or 'none'}"
        raise UsageError(f"no preset {preset!r}; {advice}", hint=f"There are: {', '.join(known)}.")
    content = read_mapping(path, stack)
    content.pop("description", None)
    stack.lay(content, f"presets/{path.name}")


def _tuned_with(preset: str | None, content: Mapping[str, Any]) -> bool:
    """Say whether a file holds settings that `safebench tune` chose under this very preset."""
    record = content.get("tuned")
    return preset is not None and isinstance(record, Mapping) and record.get("preset") == preset


def _lay_override(stack: Stack, override: str) -> None:
    key, equals, text = override.partition("=")
    parts = tuple(part.strip() for part in key.split("."))
    if not equals or not all(parts):
        stack.fault("", f"--set {override!r}: write key.path=value")
        return
    try:
        value = yaml_text.read(text)
    except ValueError as error:
        stack.fault(key, f"{text!r} is not a YAML value: {error}", COMMAND_LINE)
        return
    for part in reversed(parts):
        value = {part: value}
    stack.lay(value, COMMAND_LINE)


def _refuse_another_experiment(stack: Stack, title: str) -> None:
    said = stack.values.get("experiment", title)
    if said != title:
        stack.fault("experiment", f"{said!r}, but the command names {title!r}", stack.source(("experiment",)))


def validated(stack: Stack, what: str, check_names: bool = True) -> Settings:
    """Return the settings of a stack; raise ``UsageError`` naming every fault of ``what``."""
    settings, found = faults.validate(Settings, stack)
    if check_names:
        found += faults.of_names(stack)
    if settings is None or found:
        raise refusal(what, found)
    return settings


def refusal(what: str, found: Sequence[Fault]) -> UsageError:
    """Return the error that names every fault of ``what``, a line each."""
    count = f"{len(found)} faults" if len(found) > 1 else "a fault"
    lines = "\n".join(f"  {fault}" for fault in found)
    return UsageError(
        f"{count} in the settings of {what}:\n{lines}",
        hint="`safebench run EXPERIMENT --dry-run` prints every key.",
    )


def _leaves(section: BaseModel, path: Path_ = ()) -> Iterator[tuple[str, Any]]:
    for key in type(section).model_fields:
        value = getattr(section, key)
        if isinstance(value, BaseModel):
            yield from _leaves(value, (*path, key))
        else:
            yield ".".join((*path, key)), value


def _description(path: Path) -> str:
    stack = Stack()
    content = read_mapping(path, stack)
    return str(stack.faults[0]) if stack.faults else str(content.get("description", ""))
