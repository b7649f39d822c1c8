"""Resolves settings from YAML and the command line: layers, checks and hashes them; reports all faults at once."""

from __future__ import annotations

import hashlib
import json
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from safebench import registry
from safebench.config import yaml_text
from safebench.config.schema import Settings
from safebench.errors import BadResource, UsageError, nearest
from safebench.registry import Group

Path_ = tuple[str, ...]
"""A key's full path, one part per level."""

BASE = "_base"

_LONGEST_NAME = 200
"""Characters. File systems raise an error for names that are not much longer."""


@dataclass(frozen=True)
class Fault:
    """One fault in the settings."""

    key: str
    message: str
    source: str = ""
    value: str = ""

    def __str__(self) -> str:
        what = f"{self.key} = {self.value}" if self.value else self.key
        origin = f" ({self.source})" if self.source else ""
        return f"{what}: {self.message}{origin}" if what else f"{self.message}{origin}"


@dataclass
class Stack:
    """The layers merged so far: the values, the source of each, and the faults."""

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[Path_, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def lay(self, layer: Mapping[str, Any], source: str) -> None:
        """Merge ``layer`` on top: mappings merge key by key, any other value replaces the one below."""
        _merge(self.values, layer, (), source, self.sources)

    def source(self, path: Path_) -> str:
        """Return where the value at ``path``, or the nearest section above it, came from."""
        while path:
            if path in self.sources:
                return self.sources[path]
            path = path[:-1]
        return ""

    def fault(self, key: str, message: str, source: str = "") -> None:
        """Record a fault without raising it."""
        self.faults.append(Fault(key, message, source))


def _merge(
    below: dict[str, Any], layer: Mapping[str, Any], path: Path_, source: str, sources: dict[Path_, str]
) -> None:
    for key, value in layer.items():
        here = (*path, key)
        sources[here] = source
        if isinstance(value, Mapping):
            inner = below.get(key)
            below[key] = inner if isinstance(inner, dict) else {}
            _merge(below[key], value, here, source, sources)
        else:
            below[key] = value


def folders() -> list[Path]:
    """Return the folders of experiments in the current folder, the package and the repository, if they exist."""
    package = Path(__file__).parents[1]
    places = (Path.cwd() / "experiments", package / "experiments", package.parent / "experiments")
    return [place for place in dict.fromkeys(place.resolve() for place in places) if place.is_dir()]


def is_path(name: str) -> bool:
    """Return whether ``name`` is the path of a YAML file rather than a name."""
    return name.endswith((".yaml", ".yml"))


def locate(name: str, kind: str = "") -> Path | None:
    """Return the file of the experiment called ``name``, or of the preset when ``kind`` is ``presets``."""
    if len(name) > _LONGEST_NAME:
        return None
    for folder in folders():
        path = folder / kind / f"{name}.yaml"
        if path.is_file():
            return path
    return None


def names(kind: str = "") -> dict[str, Path]:
    """Return all experiments (or ``presets``) by name, in alphabetical order; the first folder with a name wins."""
    found: dict[str, Path] = {}
    for folder in folders():
        for path in sorted((folder / kind).glob("*.yaml")):
            if not path.name.startswith("_"):
                found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def read_mapping(path: Path, stack: Stack) -> dict[str, Any]:
    """Return the mapping that a YAML file holds; record a fault if it cannot be read or holds something else."""
    try:
        value = yaml_text.read(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        stack.fault("", f"{path}: cannot be read: {reason}")
        return {}
    except ValueError as error:
        stack.fault("", f"{path}: not valid YAML: {error}")
        return {}
    if value is None:
        return {}
    if not isinstance(value, dict):
        stack.fault("", f"{path}: holds no keys and values")
        return {}
    return value


def chain(path: Path, stack: Stack) -> list[tuple[Path, dict[str, Any]]]:
    """Return the files that the experiment at ``path`` is made of, base first, with their contents."""
    files = list(_ancestors(path, stack))
    base = locate(BASE)
    if base is not None and all(file.stem != BASE for file, _ in files):
        files.append((base, read_mapping(base, stack)))
    return files[::-1]


def _ancestors(path: Path, stack: Stack) -> Iterator[tuple[Path, dict[str, Any]]]:
    seen: list[Path] = []
    here: Path | None = path
    while here is not None:
        if here.resolve() in seen:
            stack.fault("extends", "goes round in a circle: " + " < ".join(p.stem for p in [*seen, here]), str(path))
            return
        seen.append(here.resolve())
        content = read_mapping(here, stack)
        parent = content.pop("extends", None)
        yield here, content
        here = _parent(parent, here, stack)


def _parent(parent: Any, child: Path, stack: Stack) -> Path | None:
    if parent is None:
        return None
    if not isinstance(parent, str):
        stack.fault("extends", f"must name one experiment, not {parent!r}", str(child))
        return None
    beside = child.parent / (parent if is_path(parent) else f"{parent}.yaml")
    found = beside if beside.is_file() else locate(parent)
    if found is None:
        near = nearest(parent, list(names()))
        stack.fault("extends", f"no experiment {parent!r}" + (f"; did you mean {near}?" if near else ""), str(child))
    return found


S = TypeVar("S", bound=BaseModel)

UNKNOWN = "unknown key"
"""Start of the message for a key that the schema does not have."""

_NAMED: tuple[tuple[Path_, Group], ...] = (
    (("algorithm",), "algorithms"),
    (("model", "name"), "models"),
    (("reward", "name"), "rewards"),
    (("reward", "judge"), "rewards"),
    (("prompts", "name"), "prompts"),
    (("update", "optimizer"), "optimizers"),
)


def validate(model: type[Settings], stack: Stack) -> tuple[Settings | None, list[Fault]]:
    """Return the settings, or None if they are invalid, and every fault: of the layers, of keys and between keys."""
    found = [*stack.faults, *_truth_for_number(model, stack)]
    try:
        return model.model_validate(stack.values), found
    except ValidationError as error:
        details = error.errors()
    found += [_fault(detail, model, stack) for detail in details]
    # Checks between keys run only if the keys themselves are valid: remove the invalid ones and check again.
    if any(detail["loc"] for detail in details):
        found += _between_keys(model, stack, details)
    return None, found


def of_section(model: type[S], value: Any, path: Path_, stack: Stack) -> tuple[S | None, list[Fault]]:
    """Return ``value`` as the section ``model``, or None, and every fault; ``path`` is its place in the settings."""
    try:
        return model.model_validate(value), []
    except ValidationError as error:
        return None, [_fault(detail, model, stack, path) for detail in error.errors()]


def of_names(stack: Stack) -> list[Fault]:
    """Return a fault for every name that is not in the catalogue."""
    found = []
    for path, group in _NAMED:
        found += _name_fault(stack, path, group, _at(stack.values, path))
    trackers = _at(stack.values, ("recording", "trackers"))
    for name in trackers if isinstance(trackers, (list, tuple)) else ():
        found += _name_fault(stack, ("recording", "trackers"), "trackers", name)
    return found


def _name_fault(stack: Stack, path: Path_, group: Group, name: Any) -> list[Fault]:
    if not isinstance(name, str):
        return []
    wrong = registry.fault(group, name)
    return [Fault(".".join(path), wrong, stack.source(path), name)] if wrong else []


def _fault(detail: ErrorDetails, model: type[BaseModel], stack: Stack, above: Path_ = ()) -> Fault:
    below = tuple(str(part) for part in detail["loc"])
    path = (*above, *below)
    key, source, value = ".".join(path), stack.source(path), _shown(detail["input"])
    if detail["type"] == "extra_forbidden":
        near = FORMER.get(key) or nearest_key(below, model)
        return Fault(key, UNKNOWN + (f"; did you mean {near}?" if near else ""), source, value)
    if detail["type"] == "missing":
        return Fault(key, "is missing", source)
    if detail["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return Fault(key, "is a section: give its keys", source, value)
    if detail["type"] == "value_error":
        return Fault(key, str(detail["msg"]).removeprefix("Value error, "), source)
    message = str(detail["msg"]).replace("Input should be", "must be").replace("Input should", "must")
    return Fault(key, f"{message[:1].lower()}{message[1:]}", source, value)


def _between_keys(model: type[Settings], stack: Stack, details: list[ErrorDetails]) -> list[Fault]:
    mended = deepcopy(stack.values)
    for detail in details:
        _remove(mended, tuple(str(part) for part in detail["loc"]))
    for key in ("experiment", "algorithm"):
        mended.setdefault(key, "unnamed")
    try:
        model.model_validate(mended)
    except ValidationError as error:
        return [_fault(detail, model, stack) for detail in error.errors() if not detail["loc"]]
    return []


def _truth_for_number(model: type[BaseModel], stack: Stack) -> list[Fault]:
    """Return a fault for each ``true`` or ``false`` where a number belongs (pydantic reads it as 1 or 0)."""
    found = []
    for path, annotation in fields(model):
        value = _at(stack.values, path)
        if isinstance(value, bool) and not _mentions(annotation, bool) and _mentions(annotation, int, float):
            found.append(Fault(".".join(path), "must be a number", stack.source(path), _shown(value)))
    return found


def fields(model: type[BaseModel], path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Yield path and type of every key below ``model``, sections included."""
    for name, info in model.model_fields.items():
        yield (*path, name), info.annotation
        for part in (info.annotation, *typing.get_args(info.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from fields(part, (*path, name))


def _mentions(annotation: Any, *types: type) -> bool:
    return annotation in types or any(_mentions(part, *types) for part in typing.get_args(annotation))


def nearest_key(path: Path_, model: type[BaseModel]) -> str | None:
    """Return the known key closest to ``path``: a sibling, else one of that name elsewhere, else the closest path."""
    known = [".".join(field) for field, _ in fields(model)]
    section = path[:-1]
    siblings = [field[-1] for field, _ in fields(model) if field[:-1] == section]
    sibling = nearest(path[-1], siblings)
    if sibling:
        return ".".join((*section, sibling))
    namesakes = [key for key in known if key.split(".")[-1] == path[-1]]
    return namesakes[0] if namesakes else nearest(".".join(path), known)


def _at(values: Any, path: Path_) -> Any:
    for part in path:
        if not isinstance(values, dict):
            return None
        values = values.get(part)
    return values


def _remove(values: dict[str, Any], path: Path_) -> None:
    """Remove the value at ``path``, or the list that holds it."""
    for end in range(len(path), 0, -1):
        section = _at(values, path[: end - 1])
        if isinstance(section, dict):
            section.pop(path[end - 1], None)
            return


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return repr(value)


FORMER = {"arm": "algorithm"}
"""Present keys by their former names."""

DEFAULT = "default"
NOT_OF_THE_RUN = frozenset({"seed", "experiment", "description", "trust_remote_code", "recording", "compute", "tuned"})
"""Keys that do not change what a run computes and are not hashed; of ``compute``, all except ``replicate``."""

COMMAND_LINE = "command line"
"""What ``Layers.stack`` names as the source of an override."""

_RETIRED: Mapping[tuple[str, str], Mapping[str, str]] = {
    ("critic", "reads"): {"safe-official": "last", "ppo-official": "last", "": "token"},
    ("loss", "entropy_over"): {"safe-official": "all", "": "reply"},
}
"""Settings that only files of earlier versions have, and by algorithm (``""``: any other) the value to ignore, because
the algorithm always behaves so."""

_UNSAFE = re.compile(r"[^A-Za-z0-9._@+-]+")


@dataclass(frozen=True)
class Layers:
    """The merged layers of an experiment, not yet checked. ``tuning`` is a section that no run reads."""

    stack: Stack
    tuning: Any = None


def resolve(
    experiment: str,
    *,
    preset: str | None = None,
    files: Sequence[str | Path] = (),
    overrides: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
    check_names: bool = True,
) -> Settings:
    """Return the settings of ``experiment``: base < experiment < preset < files < values < overrides.

    ``experiment`` is a name, ``name@preset`` or the path of a YAML file; ``values`` maps ``key.path`` to typed
    values; an override is the text ``key.path=value``. Raises ``UsageError`` naming every fault with its key, value
    and origin.
    """
    return validated(lay(experiment, preset, files, overrides, values or {}).stack, experiment, check_names)


def lay(
    experiment: str,
    preset: str | None,
    files: Sequence[str | Path],
    overrides: Sequence[str],
    values: Mapping[str, Any],
) -> Layers:
    """Return the layers of ``experiment``, merged in the order of ``resolve``, with its ``tuning`` section separate."""
    stack = Stack()
    name, preset = _split(experiment, preset)
    path = _experiment_path(name)
    parts = chain(path, stack)
    for file, content in parts:
        stack.lay(content, file.name)
    title = _title(name, stack)
    _lay_preset(stack, preset)
    if _tuned_with(preset, parts[-1][1]):
        # The values were tuned under this preset, so they replace the preset's own.
        content = {key: value for key, value in parts[-1][1].items() if key != "experiment"}
        stack.lay(content, parts[-1][0].name)
    for extra in files:
        stack.lay(read_mapping(Path(extra), stack), str(extra))
    for key, value in values.items():
        stack.lay(_nested(tuple(key.split(".")), value), COMMAND_LINE)
    for override in overrides:
        _lay_override(stack, override)
    _refuse_another_experiment(stack, title)
    stack.values["experiment"] = title if preset is None else f"{title}@{preset}"
    return Layers(stack, stack.values.pop("tuning", None))


def own_preset(model: str, device: str) -> str:
    """Return the default preset of a model other than the embedded one on a device, ``cuda`` or ``cpu``."""
    known = next((entry.preset for entry in registry.entries("models") if entry.name == model), "large")
    return known if device == "cuda" else f"{known}-cpu"


def settings_hash(settings: Settings) -> str:
    """Return a hash (eight hex digits) of what the run computes, independent of seed, name, recording and device."""
    return digest(departures(settings))


def departures(settings: Settings) -> dict[str, Any]:
    """Return the settings that differ from the schema's defaults."""
    return settings.model_dump(mode="json", exclude_defaults=True)


def digest(settings: Mapping[str, Any]) -> str:
    """Return a hash (eight hex digits) of what a run computes, from settings as ``departures`` returns them.

    A new setting that is off does not change the hash, so existing folders and kept lines keep theirs.
    """
    kept = {key: value for key, value in settings.items() if key not in NOT_OF_THE_RUN}
    if replicate := settings.get("compute", {}).get("replicate"):
        kept["compute"] = {"replicate": replicate}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


def current(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run's file with former keys renamed, without retired settings that have no effect."""
    kept = {"algorithm" if key == "arm" else key: value for key, value in settings.items()}
    for (section, key), silent in _RETIRED.items():
        there = kept.get(section)
        if isinstance(there, dict) and there.get(key) == silent.get(str(kept.get("algorithm")), silent[""]):
            kept[section] = {name: value for name, value in there.items() if name != key}
    return kept


def shipped(settings: Settings) -> Settings | None:
    """Return the named experiment as its file defines it, for the same model and seed; None without such a file."""
    name, preset = _split(settings.experiment, None)
    if locate(name) is None or (preset is not None and locate(preset, "presets") is None):
        return None
    same = {"model.name": settings.model.name, "seed": settings.seed}
    return resolve(name, preset=preset, values=same, check_names=False)


def differs(settings: Settings) -> bool:
    """Return whether the settings compute something other than the named experiment as shipped."""
    original = shipped(settings)
    return original is None or settings_hash(original) != settings_hash(settings)


def changes(settings: Settings, original: Settings) -> list[tuple[str, Any, Any]]:
    """Return (key, original value, value) for every key in which the two differ."""
    before, after = dict(_leaves(original)), dict(_leaves(settings))
    keys = dict.fromkeys([*before, *after])
    return [(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]


def command(settings: Settings) -> list[str]:
    """Return the command line that makes this run, however it was started: experiment, seed, and what differs.

    An experiment that is not in the folders of experiments, such as a tuned one, is expressed as one with the same
    algorithm that is, with every setting in which the two differ. The run is then the same except for its name.
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
    """Return the name of the experiment that these settings were tuned from, or of one with the same algorithm."""
    if settings.tuned is not None:
        preset = f"@{settings.tuned.preset}" if settings.tuned.preset else ""
        return f"{settings.tuned.experiment}{preset}"
    resolved = ((name, resolve(name, check_names=False)) for name in names())
    return next((name for name, other in resolved if other.algorithm == settings.algorithm), settings.experiment)


def run_folder(root: str | Path, settings: Settings) -> Path:
    """Return <root>/<model>/<experiment>[-<hash>]/seed-<n>, with model and experiment as safe file names."""
    name = safe_name(settings.experiment)
    if differs(settings):
        name += f"-{settings_hash(settings)}"
    return Path(root) / model_folder(settings.model.name) / name / f"seed-{settings.seed}"


def model_folder(model: str) -> str:
    """Return the folder name of a model; a directory's includes a hash of its path, so that no two share a name."""
    entry_name = safe_name(model.replace("/", "--"))
    if not Path(model).expanduser().is_dir() or any(entry.name == model for entry in registry.MODELS):
        return entry_name
    place = Path(model).expanduser().resolve()
    return f"{safe_name(place.name)}-{hashlib.sha256(str(place).encode()).hexdigest()[:4]}"


def safe_name(text: str) -> str:
    """Return ``text`` with all but letters, digits and ``._@+-`` replaced; it is never a hidden or an empty name."""
    return _UNSAFE.sub("-", text).lstrip(".-") or "unnamed"


def dump(settings: Settings) -> str:
    """Return all settings as YAML that ``load`` reads back to an equal value."""
    return yaml_text.write(settings.model_dump(mode="json"))


def load(path: str | Path) -> Settings:
    """Return the settings that a run's ``config.yaml`` holds.

    Raises ``BadResource`` if the file is damaged, or comes from a version of safebench with other settings.
    """
    path, stack = Path(path), Stack()
    stack.lay(current(read_mapping(path, stack)), str(path))
    if stack.faults:
        wrong = "; ".join(map(str, stack.faults))
        raise BadResource(f"the run in {path.parent} is damaged: {wrong}", "Start it again with --if-exists overwrite.")
    settings, found = validate(Settings, stack)
    if settings is None or found:
        raise _other_version(path.parent, found)
    return settings


def _other_version(folder: Path, found: Sequence[Fault]) -> BadResource:
    """Return the error for a run folder whose settings are not valid in this version.

    Such settings are not written by hand, so another version must have made them.
    """
    here, made = version("safebench"), _made_by(folder)
    if made is None or made == here:
        also = ", though its manifest names the same" if made else ""
        maker = f"another version of safebench than this one, {here}{also}"
    else:
        maker = f"safebench {made}, and this is safebench {here}"
    unknown = [fault.key for fault in found if fault.message.startswith(UNKNOWN)]
    others = [str(fault) for fault in found if not fault.message.startswith(UNKNOWN)]
    said = [f"this version does not know {', '.join(unknown)}"] if unknown else []
    return BadResource(
        f"the run in {folder} was made by {maker}: {'; '.join([*said, *others])}",
        "Use the version that made it, or keep new runs apart with --results DIR.",
    )


def _made_by(folder: Path) -> str | None:
    """Return the version of safebench that the run's manifest names; None if it names none."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        return str(manifest["versions"]["safebench"])
    except (OSError, ValueError, KeyError, TypeError):  # missing, or not in the format of this version
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
    """Split ``name@preset`` into name and preset; the default preset becomes None."""
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
            raise UsageError(f"no experiment file {name}", hint="`safebench list experiments` lists the named ones.")
        return Path(name)
    found = locate(name)
    if found is None or name.startswith("_"):
        known = list(names())
        near = nearest(name, known)
        advice = f"did you mean {near}?" if near else f"there are {', '.join(known) or 'none'}"
        raise UsageError(f"no experiment {name!r}; {advice}", hint="`safebench list experiments` lists them.")
    return found


def _title(name: str, stack: Stack) -> str:
    """Return the experiment's own name: the requested name, or for a file its ``experiment`` key or its file name."""
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
    """Return whether a file holds settings that `safebench tune` chose under this same preset."""
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
    stack.lay(_nested(parts, value), COMMAND_LINE)


def _nested(path: Path_, value: Any) -> dict[str, Any]:
    """Return ``value`` nested in the sections that ``path`` names."""
    for part in reversed(path):
        value = {part: value}
    return dict(value)


def _refuse_another_experiment(stack: Stack, title: str) -> None:
    said = stack.values.get("experiment", title)
    if said != title:
        stack.fault("experiment", f"{said!r}, but the command names {title!r}", stack.source(("experiment",)))


def validated(stack: Stack, what: str, check_names: bool = True) -> Settings:
    """Return the settings of a stack; raise ``UsageError`` naming every fault of ``what``."""
    settings, found = validate(Settings, stack)
    if check_names:
        found += of_names(stack)
    if settings is None or found:
        raise refusal(what, found)
    return settings


def refusal(what: str, found: Sequence[Fault]) -> UsageError:
    """Return the error that names every fault of ``what``, one per line."""
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
