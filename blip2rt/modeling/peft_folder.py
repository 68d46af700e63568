"""Folders that peft saved: a LoRA adapter (Hu et al. 2021), merged into its base's tensors as they are read.

A folder with an adapter is read as its base: the model beside it, as in transformers, or else the one that its
adapter_config.json names. Other kinds of adapters are rejected by name. Does not know about models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from blip2rt.errors import Blip2rtError, boundary

from .sources import ADAPTER_CONFIG, CONFIG, fetch, read_json
from .streaming import Entry

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_MERGE = "merge it with peft's merge_and_unload() and save the result"
_PREFIX = "base_model.model."
_PAIR = re.compile(r"(.+)\.lora_([AB])\.weight")
_WRAPPERS = re.compile(r"\.(base_layer|modules_to_save)\.")  # modules that peft puts around layers
_WITHOUT_EFFECT = (  # on merged weights; what such fields save is in the tensors, whose names are checked
    """
    auto_mapping base_model_name_or_path bias corda_config ensure_weight_tying eva_config exclude_modules inference_mode
    init_lora_weights layers_pattern layers_to_transform loftq_config lora_dropout lora_ga_config megatron_config
    megatron_core modules_to_save peft_type peft_version qalora_group_size r rank_pattern runtime_config
    target_modules task_type velora_config
    """.split()
)
_READ = ("lora_alpha", "alpha_pattern", "use_rslora", "fan_in_fan_out")
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # initialisations that change the base's weights, too


def has_adapter(folder: Path) -> bool:
    """Whether peft saved an adapter in a folder."""
    return (folder / ADAPTER_CONFIG).is_file()


def base_of(path: str) -> str:
    """The folder of an adapter's base; any other folder or file, or a base with an adapter beside it, is its own.

    Raises Blip2rtError if the base cannot be found.
    """
    folder = Path(path)
    if not has_adapter(folder) or (folder / CONFIG).is_file():
        return path
    config = read_adapter_config(folder)
    base = config.get("base_model_name_or_path")
    what = f"{folder} holds only an adapter of peft (LoRA) for {base!r}"
    if not isinstance(base, str) or not base:
        raise Blip2rtError(
            f"{what}: set base_model_name_or_path in its {ADAPTER_CONFIG} to the base's folder or hub id"
        )
    try:
        found = fetch(base)
    except Blip2rtError as error:
        fix = f"download that base, and set base_model_name_or_path in {ADAPTER_CONFIG} to its folder"
        raise Blip2rtError(f"{what}, which cannot be read ({error}): {fix}") from error
    if has_adapter(Path(found)):
        raise Blip2rtError(f"{what}, which has an adapter, too: {_MERGE} first")
    return found


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a folder. Raises Blip2rtError: damaged, or an adapter of an unsupported kind."""
    file = folder / ADAPTER_CONFIG
    with boundary(f"{file} is damaged"):
        config = read_json(file)
        if not isinstance(config, dict):
            raise ValueError("it is not an object")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise Blip2rtError(f"{folder} holds an adapter of kind {kind!r}, supported is 'LORA': {_MERGE}")
    faults = [
        f"{name} is {str(value)[:60]!r}"
        for name, value in config.items()
        if value and name not in _WITHOUT_EFFECT and name not in _READ
    ]
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_CHANGES_BASE):
        faults.append(f"init_lora_weights is {init!r}")
    if faults:
        raise Blip2rtError(f"{file}: {', '.join(faults)}, which is not supported: {_MERGE}")
    return config


@dataclass(frozen=True)
class _Scaling:
    """The factor of a product of adapters: alpha / rank, or alpha / sqrt(rank) with use_rslora."""

    alpha: float
    patterns: Sequence[tuple[re.Pattern[str], float]]  # of modules' names -> alpha
    root: bool

    @staticmethod
    def from_json(config: Mapping[str, Any]) -> _Scaling:
        """Raises ValueError for anything that is no number or no regular expression."""
        patterns = []
        for key, value in (config.get("alpha_pattern") or {}).items():
            try:
                patterns.append((re.compile(rf"(.*\.)?({key})$"), float(value)))  # as peft's get_pattern_key
            except re.error as error:
                raise ValueError(f"alpha_pattern has {key!r}, which is no regular expression ({error})") from error
        return _Scaling(float(config.get("lora_alpha", 8)), patterns, bool(config.get("use_rslora")))

    def of(self, module: str, rank: int) -> float:
        """As peft: the first pattern that matches decides."""
        alpha = next((alpha for pattern, alpha in self.patterns if pattern.match(module)), self.alpha)
        return alpha / (rank**0.5 if self.root else rank)


def merged(config: Mapping[str, Any], adapter: Mapping[str, Entry], base: Mapping[str, Entry]) -> dict[str, Entry]:
    """Float32 entries for the base's tensors that an adapter changes or replaces, by their names in the base.

    Raises ValueError, which lists tensors that have no counterpart.
    """
    scaling, names = _Scaling.from_json(config), _BaseNames(base)
    found: dict[str, Entry] = {}
    pairs: dict[str, dict[str, Entry]] = {}
    faults: list[str] = []
    for name, entry in adapter.items():
        stem = _WRAPPERS.sub(".", name.removeprefix(_PREFIX))
        if ".original_module." in name:  # of a layer that modules_to_save replaces
            continue
        if match := _PAIR.fullmatch(stem):
            pairs.setdefault(match[1], {})[match[2]] = entry
            continue
        there = None if ".lora_" in stem else names.find(stem)
        if there is None or base[there][0] != entry[0]:
            faults.append(f"{stem} {entry[0]}")
        else:
            found[there] = entry
    for module, pair in pairs.items():
        there = names.find(f"{module}.weight")
        if there is not None and pair.keys() == {"A", "B"}:
            factor = partial(scaling.of, module)
            made = _product(base[there], pair["A"], pair["B"], factor, bool(config.get("fan_in_fan_out")))
            if made is not None:
                found[there] = made
                continue
        faults.append(f"{module}.lora_A and lora_B {[entry[0] for entry in pair.values()]}")
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ValueError(f"its base has no layer or tensor for {', '.join(faults[:3])}{more}")
    if not found:
        raise ValueError("it has no tensors")
    return found


def _product(base: Entry, down: Entry, up: Entry, factor: Callable[[int], float], transposed: bool) -> Entry | None:
    """base (N,K) or (N,K,h,w), down (r,K) or (r,K,h,w), up (N,r) or (N,r,1,1) -> base + factor(r) * up @ down.

    transposed: a square base is (K,N), as GPT-2's; other shapes tell. None if the shapes do not fit.
    """
    shape, (rank, *columns), rows = base[0], down[0], up[0][0]
    if not rank or up[0][1:2] != (rank,) or torch.Size(up[0]).numel() != rows * rank:
        return None
    straight, turned = shape == (rows, *columns), shape == (*columns, rows)
    if not straight and not turned:
        return None
    turn = turned and (transposed or not straight)
    scale = factor(rank)

    def read() -> torch.Tensor:
        change = scale * (up[1]().float().flatten(1) @ down[1]().float().flatten(1))
        return base[1]().float() + (change.T if turn else change.view(shape))

    return shape, read


class _BaseNames:
    """The base's names; a model that contains or is contained in the adapted one has them with or without a prefix."""

    def __init__(self, names: Mapping[str, Any]) -> None:
        self.names = names
        self.by_last: dict[str, list[str]] = {}
        for name in names:
            self.by_last.setdefault(_tail(name), []).append(name)

    def find(self, name: str) -> str | None:
        """The base's name of a tensor; None if there is none, or several."""
        if name in self.names:
            return name
        found = [each for each in self.by_last.get(_tail(name), ()) if _is_end(each, name) or _is_end(name, each)]
        return found[0] if len(found) == 1 else None


def _tail(name: str) -> str:
    return ".".join(name.split(".")[-2:])


def _is_end(end: str, name: str) -> bool:
    return name.endswith(f".{end}")
