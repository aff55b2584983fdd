"""Ready-made IPUConfigs: JSON files in the package `ipu_configs`, each with the source of its values.

A profile file is {"about": {...}, "config": {fields of ipu_config.json}}. A plain `ipu_config.json` is read as well, so
that `--ipu_config` accepts a profile's name, either kind of file, or a model folder.
"""

from __future__ import annotations

import difflib
import importlib.resources
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

import ipu_configs
from ipu_trainer.config.ipu_config import CONFIG_FILE, IPUConfig
from ipu_trainer.errors import UserError
from ipu_trainer.json_files import read_json

_PROFILE = {"config?": {}, "about?": {"micro_batch?": (int, None)}}


@dataclass(frozen=True)
class Profile:
    """A named IPUConfig. micro_batch is what it was published or derived with; None where the file does not say."""

    name: str
    config: IPUConfig
    about: Mapping[str, Any]

    @property
    def micro_batch(self) -> Optional[int]:
        value = self.about.get("micro_batch")
        return None if value is None else int(value)


def profile_names() -> Tuple[str, ...]:
    return tuple(sorted(_read_packaged()))


def load_profile(name_or_path: str) -> Profile:
    """A packaged profile by name, or a profile or `ipu_config.json` by path (a folder that holds one will do).

    Raises UserError with the nearest names if there is neither.
    """
    packaged = _read_packaged()
    path = Path(name_or_path)
    if name_or_path in packaged:
        return _profile(name_or_path, packaged[name_or_path], name_or_path)
    if path.is_dir():
        path = path / CONFIG_FILE
    if path.is_file():
        return _profile(str(path), read_json(path, _PROFILE, "Start from `ipu-trainer profiles show NAME`."), path.stem)
    near = difflib.get_close_matches(name_or_path, packaged, n=3)
    hint = f"Nearest: {', '.join(near)}." if near else f"Profiles: {', '.join(sorted(packaged))}."
    raise UserError(f"{name_or_path!r} is neither a profile nor a file. {hint} `ipu-trainer profiles list` shows all.")


def check(config: IPUConfig, model_config: Mapping[str, Any]) -> List[str]:
    """The problems of running the model of a Hugging Face `config.json` with config; empty if there are none."""
    problems = []
    stages = config.ipus_per_replica or 1
    num_layers = num_repeated_layers(model_config)
    if num_layers is None:
        problems.append(
            f"model_type {model_config.get('model_type')!r} has no number of layers (expected one of "
            f"{', '.join(_LAYER_COUNTS)}); layers_per_ipu {list(config.layers_per_ipu)} could not be checked."
        )
    else:
        try:
            config.resolve_layers(num_layers)
        except ValueError as error:
            problems.append(str(error))
    if config.gradient_accumulation_steps < 2 * stages - 1:
        problems.append(
            f"gradient_accumulation_steps {config.gradient_accumulation_steps} is too small for a pipeline of {stages} "
            f"IPUs, which needs at least 2 x {stages} - 1. Use {2 * stages - 1} or more."
        )
    if config.num_ipus & (config.num_ipus - 1):
        rounded = 1 << config.num_ipus.bit_length()
        problems.append(
            f"replication_factor {config.replication_factor} x ipus_per_replica {stages} takes {config.num_ipus} IPUs; "
            f"Pods attach powers of two, so {rounded} would be reserved. Choose a replication_factor that fills them."
        )
    vocabulary = model_config.get("vocab_size")
    factor = config.embedding_serialization_factor or 1
    if isinstance(vocabulary, int) and vocabulary % factor:
        fits = [value for value in range(factor, 2 * factor + 9) if vocabulary % value == 0]
        problems.append(
            f"embedding_serialization_factor {factor} does not divide vocab_size {vocabulary}. "
            + (f"Use {fits[0]}, or pad" if fits else "Pad")
            + f" the vocabulary to {-(-vocabulary // factor) * factor} tokens."
        )
    if config.replicated_tensor_sharding and config.replication_factor == 1:
        problems.append(
            "replicated_tensor_sharding is true with replication_factor 1: there is nothing to shard over. Set it to false."
        )
    return problems


def num_repeated_layers(model_config: Mapping[str, Any]) -> Optional[int]:
    """Repeated layers that layers_per_ipu counts: of an encoder-decoder, those of both halves."""
    if model_config.get("is_encoder_decoder"):
        encoder = model_config.get("encoder_layers", model_config.get("num_layers"))
        decoder = model_config.get("decoder_layers", model_config.get("num_decoder_layers", encoder))
        return None if encoder is None or decoder is None else int(encoder) + int(decoder)
    for name in _LAYER_COUNTS:
        if isinstance(model_config.get(name), int):
            return int(model_config[name])
    depths = model_config.get("depths")
    return sum(depths) if isinstance(depths, list) else None


def list_table() -> str:
    """One line for each profile: name, IPUs, placement, batch, source."""
    rows = [("profile", "system", "IPUs", "layers per IPU", "micro-batch x accumulation x replicas", "values from")]
    for name in profile_names():
        profile = load_profile(name)
        config = profile.config
        batch = f"{profile.micro_batch} x {config.gradient_accumulation_steps} x {config.replication_factor}"
        layers = " ".join(str(count) for count in config.layers_per_ipu)
        about = profile.about
        rows.append((name, str(about["system"]), str(config.num_ipus), f"[{layers}]", batch, str(about["basis"])))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
# What check() reads of a model's config.json.
MODEL = {
    **{f"{name}?": (int, None) for name in (*_LAYER_COUNTS, "encoder_layers", "decoder_layers", "num_decoder_layers")},
    "vocab_size?": (int, None),
    "depths?": ([int], None),
}


def _read_packaged() -> Dict[str, Any]:
    # importlib.resources.files came with Python 3.9; contents and read_text left with 3.13.
    if hasattr(importlib.resources, "files"):
        files = [item for item in importlib.resources.files(ipu_configs).iterdir() if item.name.endswith(".json")]
        return {item.name[: -len(".json")]: json.loads(item.read_text(encoding="utf-8")) for item in files}
    names = [name for name in importlib.resources.contents(ipu_configs) if name.endswith(".json")]
    return {name[: -len(".json")]: json.loads(importlib.resources.read_text(ipu_configs, name)) for name in names}


def _profile(source: str, content: Mapping[str, Any], name: str) -> Profile:
    """Raises UserError, with source, for values that no IPUConfig has."""
    unknown = sorted(set(content) - {"about", "config"}) if "config" in content else []
    if unknown:
        raise UserError(f"profile {source} has unknown parts {unknown}. A profile has 'about' and 'config' only.")
    try:
        config = IPUConfig.from_dict(content.get("config", content))
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
    return Profile(name, config, content.get("about", {}) if "config" in content else {})
