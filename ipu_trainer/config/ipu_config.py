"""IPUConfig: placement, replication and batching of a training run on IPUs.

It reads and writes optimum-graphcore's `ipu_config.json` with all fields and defaults of its release 0.7.1
(https://github.com/huggingface/optimum-graphcore/blob/v0.7.1/optimum/graphcore/ipu_configuration.py), so each package reads the
other's files; files of earlier releases are read too (older_files.py). Unlike that class it is a value: frozen, hashable,
validated at construction. `for_inference()` returns another IPUConfig, instead of a mode that changes the meaning of attributes.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from ipu_trainer.atomic import write_text
from ipu_trainer.config.older_files import current_fields
from ipu_trainer.errors import MissingFileError, UserError
from ipu_trainer.json_files import read_json
from ipu_trainer.machine.placement import resolve_wildcards

CONFIG_FILE = "ipu_config.json"
OUTPUT_MODES = ("all", "sum", "final", "default")
DEFAULT_MATMUL_PROPORTION = 0.2

# Written into the file by optimum or its old releases; without effect on a run.
_IGNORED_KEYS = frozenset(
    {
        "optimum_version",
        "transformers_version",
        "_name_or_path",
        "_commit_hash",
        "model_type",
        "sharded_execution_for_inference",
        "enable_half_first_order_momentum",
    }
)


class IPUConfigError(UserError):
    """An invalid value of an IPUConfig; the message has field, value, rule and a remedy."""


@dataclass(frozen=True)
class IPUConfig:
    """Placement, replication and batching of a run on IPUs. Field names are those of `ipu_config.json`.

    A field `inference_X` is X during evaluation; None means the value of X. Layer counts may hold the wildcard -1: remaining
    layers are split evenly over the wildcards, with the remainder of the division on the last one.
    Raises IPUConfigError (a ValueError) for any value or combination that optimum-graphcore or PopTorch cannot run.
    """

    # Replicas and batches
    replication_factor: int = 1
    inference_replication_factor: int = 1
    gradient_accumulation_steps: int = 1
    device_iterations: int = 1
    inference_device_iterations: int = 1
    # Placement
    layers_per_ipu: Tuple[int, ...] = (-1,)
    inference_layers_per_ipu: Optional[Tuple[int, ...]] = None
    ipus_per_replica: Optional[int] = None
    inference_ipus_per_replica: Optional[int] = None
    embedding_serialization_factor: Optional[int] = None
    inference_embedding_serialization_factor: Optional[int] = None
    serialized_embedding_splits_per_ipu: Optional[Tuple[int, ...]] = None
    inference_serialized_embedding_splits_per_ipu: Optional[Tuple[int, ...]] = None
    projection_serialization_factor: Optional[int] = None
    inference_projection_serialization_factor: Optional[int] = None
    serialized_projection_splits_per_ipu: Optional[Tuple[int, ...]] = None
    inference_serialized_projection_splits_per_ipu: Optional[Tuple[int, ...]] = None
    parallelize_kwargs: Dict[str, Any] = field(default_factory=dict, hash=False)
    inference_parallelize_kwargs: Dict[str, Any] = field(default_factory=dict, hash=False)
    # Memory
    optimizer_state_offchip: bool = False
    replicated_tensor_sharding: bool = False
    matmul_proportion: Union[float, Tuple[float, ...]] = DEFAULT_MATMUL_PROPORTION
    inference_matmul_proportion: Union[float, Tuple[float, ...], None] = None
    enable_half_partials: bool = True
    recompute_checkpoint_every_layer: bool = False
    explicit_ir_inference: bool = False
    # Execution
    output_mode: str = "final"
    seed: Optional[int] = None
    auto_loss_scaling: bool = False
    executable_cache_dir: str = ""
    execute_encoder_on_cpu_for_generation: bool = False

    def __post_init__(self) -> None:
        for name in _INTEGERS:
            _check_integer(name, getattr(self, name), minimum=1)
        for name in _BOOLEANS:
            _check_type(name, getattr(self, name), bool, "true or false")
        _check_integer("seed", self.seed, minimum=0, optional=True)
        _check_type("executable_cache_dir", self.executable_cache_dir, str, 'a folder name, or "" for no cache')
        if self.output_mode not in OUTPUT_MODES:
            near = difflib.get_close_matches(str(self.output_mode), OUTPUT_MODES, n=1) or ["final"]
            raise IPUConfigError(
                f"output_mode {self.output_mode!r} is not one of {', '.join(OUTPUT_MODES)}. Use {near[0]!r}."
            )
        self._set_layers()
        self._set_matmul_proportions()
        for prefix in ("", "inference_"):
            self._set_serialization(prefix, "embedding")
            self._set_serialization(prefix, "projection")
            name = prefix + "parallelize_kwargs"
            value = getattr(self, name) or {}
            _check_type(name, value, dict, "a JSON object of keyword arguments")
            self._set(name, copy.deepcopy(value))
        if self.execute_encoder_on_cpu_for_generation:
            raise IPUConfigError(
                "execute_encoder_on_cpu_for_generation true is read by no release of optimum-graphcore that can run it "
                "(its to_options raises NotImplementedError). Set it to false: generation places the encoder on IPUs."
            )

    # Values -----------------------------------------------------------------------------------------------------

    @property
    def num_ipus(self) -> int:
        """IPUs that training takes: replicas x IPUs of one replica."""
        assert self.ipus_per_replica is not None
        return self.replication_factor * self.ipus_per_replica

    def batch_size_factor(self, for_inference: bool = False) -> int:
        """Samples of one host step for a micro-batch of 1, as optimum-graphcore defines it."""
        if for_inference:
            return self.inference_replication_factor * self.inference_device_iterations
        return self.replication_factor * self.gradient_accumulation_steps * self.device_iterations

    def resolve_layers(self, num_layers: int) -> Tuple[int, ...]:
        """Layers on each IPU of a replica, wildcards replaced, for a model of num_layers repeated layers."""
        assert self.ipus_per_replica is not None
        if self.ipus_per_replica == 1:
            return (num_layers,)
        given = self.layers_per_ipu
        if given == (-1,):
            given = (-1,) * self.ipus_per_replica
        if len(given) != self.ipus_per_replica:
            raise IPUConfigError(
                f"layers_per_ipu {list(given)} has {len(given)} entries, but ipus_per_replica is "
                f"{self.ipus_per_replica}. Give one entry for each IPU, or [-1] for an even split."
            )
        try:
            return resolve_wildcards(given, num_layers)
        except ValueError as error:
            raise IPUConfigError(str(error)) from None

    def for_inference(self) -> IPUConfig:
        """The configuration of evaluation: every field has the value of its inference_ field, without accumulation."""
        changes: Dict[str, Any] = {name: getattr(self, "inference_" + name) for name in _TWINS}
        return dataclasses.replace(self, gradient_accumulation_steps=1, **changes)

    def updated(self, **changes: Any) -> IPUConfig:
        """Another IPUConfig with some fields changed. Values that were derived from these are derived again."""
        _refuse_unknown(changes)
        values = dict(vars(self))
        for name in _DERIVED:
            if name not in changes and self._was_derived(name):
                values[name] = None
        values.update(changes)
        return IPUConfig.from_dict(values)

    def updated_from_string(self, overrides: str) -> IPUConfig:
        """Another IPUConfig with `name=value` pairs changed: numbers and text as they are, true or false, [a b c].

        Example: "replication_factor=2,layers_per_ipu=[1 3 -1 3],enable_half_partials=false".
        Optional fields (seed, inference_*, ...) can be set too; optimum-graphcore refuses those whose value is unset.
        """
        changes: Dict[str, Any] = {}
        for pair in filter(None, (part.strip() for part in overrides.split(","))):
            name, equals, text = pair.partition("=")
            if not equals:
                raise IPUConfigError(
                    f"override {pair!r} has no '='. Write name=value pairs separated by commas, lists with spaces: "
                    "layers_per_ipu=[3 3 3 3]."
                )
            changes[name.strip()] = text.strip()
        _refuse_unknown(changes)
        return self.updated(**{name: _parse(name, text) for name, text in changes.items()})

    # Files ------------------------------------------------------------------------------------------------------

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], pod: Optional[str] = None) -> IPUConfig:
        """From the contents of `ipu_config.json`. pod: "pod16", "default", ... where an older file has a count for each size."""
        try:
            known = current_fields({name: value for name, value in values.items() if name not in _IGNORED_KEYS}, pod)
        except ValueError as error:
            raise IPUConfigError(str(error)) from None
        _refuse_unknown(known)
        # JSON has lists; this value is hashable.
        fields: Dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in known.items()}
        return cls(**fields)

    def to_dict(self) -> Dict[str, Any]:
        """All fields, derived ones filled in, as JSON types."""
        return {
            name: list(value) if isinstance(value, tuple) else copy.deepcopy(value)
            for name, value in vars(self).items()
        }

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json_file(cls, file: Union[str, os.PathLike[str]], pod: Optional[str] = None) -> IPUConfig:
        path = Path(file)
        try:
            values = read_json(path, {}, "Write it with IPUConfig.save_pretrained().")
        except MissingFileError:
            raise
        except UserError as error:
            raise IPUConfigError(str(error)) from None
        try:
            return cls.from_dict(values, pod)
        except IPUConfigError as error:
            raise IPUConfigError(f"{path}: {error}") from None

    @classmethod
    def from_pretrained(
        cls, source: Union[str, os.PathLike[str]], pod: Optional[str] = None, **options: Any
    ) -> IPUConfig:
        """Read `ipu_config.json` from a local folder or file, or from a model repository on the Hugging Face Hub.

        pod: "pod4", "pod16", "default", ... where an older file has a count for each size. options: fields to override, and the
        Hub's `revision`, `token`, `cache_dir`, `local_files_only`.
        A local path never touches the network.
        """
        hub_options = {name: options.pop(name) for name in _HUB_OPTIONS if name in options}
        _refuse_unknown(options)
        path = Path(source)
        if path.is_dir():
            path = path / CONFIG_FILE
            if not path.is_file():
                raise MissingFileError(
                    f"{path.parent} has no {CONFIG_FILE}. Write one with IPUConfig.save_pretrained()."
                )
        elif not path.is_file():
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(repo_id=str(source), filename=CONFIG_FILE, **hub_options))
        config = cls.from_json_file(path, pod)
        return config.updated(**options) if options else config

    def save_pretrained(
        self, folder: Union[str, os.PathLike[str]], push_to_hub: bool = False, **hub_options: Any
    ) -> List[str]:
        """Write `ipu_config.json` into folder, and with push_to_hub into the repository `repo_id` (default: its name)."""
        path = Path(folder) / CONFIG_FILE
        if Path(folder).is_file():
            raise IPUConfigError(f"{folder} is a file, but a folder for {CONFIG_FILE} is needed. Give its folder.")
        write_text(path, self.to_json_string())
        if push_to_hub:
            self.push_to_hub(hub_options.pop("repo_id", Path(folder).name), **hub_options)
        return [str(path)]

    def push_to_hub(self, repo_id: str, **hub_options: Any) -> str:
        """Upload `ipu_config.json` to a model repository, created if missing. Returns the commit's address."""
        from huggingface_hub import HfApi

        api = HfApi(token=hub_options.pop("token", None))
        repository = api.create_repo(repo_id, private=hub_options.pop("private", None), exist_ok=True)
        commit = api.upload_file(
            path_or_fileobj=self.to_json_string().encode(),
            path_in_repo=CONFIG_FILE,
            repo_id=repository.repo_id,
            commit_message=hub_options.pop("commit_message", f"Upload {CONFIG_FILE}"),
            **hub_options,
        )
        return str(commit)

    # Validation -------------------------------------------------------------------------------------------------

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _was_derived(self, name: str) -> bool:
        bare = {**vars(self), name: None}
        try:
            return bool(getattr(IPUConfig(**bare), name) == getattr(self, name))
        except IPUConfigError:  # the other fields only make sense with the value that was given
            return False

    def _set_layers(self) -> None:
        _check_counts("layers_per_ipu", self.layers_per_ipu, minimum=-1)
        self._set("layers_per_ipu", tuple(self.layers_per_ipu))
        if not self.inference_layers_per_ipu:
            self._set("inference_layers_per_ipu", self.layers_per_ipu)
        _check_counts("inference_layers_per_ipu", self.inference_layers_per_ipu, minimum=-1)
        inference_layers = tuple(self.inference_layers_per_ipu or ())
        self._set("inference_layers_per_ipu", inference_layers)
        for name in ("ipus_per_replica", "inference_ipus_per_replica"):
            _check_integer(name, getattr(self, name), minimum=1, optional=True)
        if self.ipus_per_replica is None:
            self._set("ipus_per_replica", len(self.layers_per_ipu))
        if self.inference_ipus_per_replica is None:
            follows = self.ipus_per_replica != len(self.layers_per_ipu) and inference_layers == (-1,)
            self._set("inference_ipus_per_replica", self.ipus_per_replica if follows else len(inference_layers))
        for prefix in ("", "inference_"):
            layers, ipus = getattr(self, prefix + "layers_per_ipu"), getattr(self, prefix + "ipus_per_replica")
            if layers != (-1,) and len(layers) != ipus:
                raise IPUConfigError(
                    f"{prefix}layers_per_ipu {list(layers)} has {len(layers)} entries, but {prefix}ipus_per_replica is "
                    f"{ipus}. Give one entry for each IPU, or leave {prefix}ipus_per_replica out."
                )

    def _set_matmul_proportions(self) -> None:
        value = self.matmul_proportion
        if self.inference_matmul_proportion is None:
            other_length = isinstance(value, (tuple, list)) and len(value) != self.inference_ipus_per_replica
            self._set("inference_matmul_proportion", DEFAULT_MATMUL_PROPORTION if other_length else value)
        for prefix in ("", "inference_"):
            name, ipus = prefix + "matmul_proportion", getattr(self, prefix + "ipus_per_replica")
            value = getattr(self, name)
            values = value if isinstance(value, (tuple, list)) else (value,)
            for item in values:
                if isinstance(item, bool) or not isinstance(item, (int, float)) or not 0 <= item <= 1:
                    raise IPUConfigError(
                        f"{name} {value!r} is not a share of an IPU's memory. Use a number from 0 to 1 such as 0.2, or "
                        f"one for each of the {ipus} IPUs."
                    )
            if isinstance(value, (tuple, list)):
                if len(value) != ipus:
                    raise IPUConfigError(
                        f"{name} {list(value)} has {len(value)} entries, but {prefix}ipus_per_replica is {ipus}. "
                        f"Give {ipus} entries, or one number for all IPUs."
                    )
                self._set(name, tuple(float(item) for item in value))
            else:
                self._set(name, float(value))

    def _set_serialization(self, prefix: str, layer: str) -> None:
        factor_name, splits_name = f"{prefix}{layer}_serialization_factor", f"{prefix}serialized_{layer}_splits_per_ipu"
        factor, splits = getattr(self, factor_name), getattr(self, splits_name)
        _check_integer(factor_name, factor, minimum=1, optional=True)
        if splits:
            _check_counts(splits_name, splits, minimum=0)
            splits, ipus = tuple(splits), getattr(self, prefix + "ipus_per_replica")
            self._set(splits_name, splits)
            used = [ipu for ipu, count in enumerate(splits) if count]
            if not used or used[-1] - used[0] + 1 != len(used):
                raise IPUConfigError(
                    f"{splits_name} {list(splits)} must hold at least one split, and its splits must lie on consecutive "
                    "IPUs, such as [3, 1, 0, 0]."
                )
            if len(splits) != ipus:
                raise IPUConfigError(
                    f"{splits_name} {list(splits)} has {len(splits)} entries, but {prefix}ipus_per_replica is {ipus}. "
                    "Give one entry for each IPU, 0 where there is no split."
                )
            if factor is not None:
                raise IPUConfigError(
                    f"{factor_name} {factor} and {splits_name} {list(splits)} are both given. Keep {factor_name} to "
                    f"serialise the {layer} on one IPU, or {splits_name} to spread it over several."
                )
        else:
            self._set(splits_name, None)
            if factor is None:
                self._set(factor_name, 1)


_BOOLEANS = tuple(item.name for item in dataclasses.fields(IPUConfig) if item.type == "bool")
_INTEGERS = tuple(item.name for item in dataclasses.fields(IPUConfig) if item.type == "int")
_FIELDS = tuple(item.name for item in dataclasses.fields(IPUConfig))
_TWINS = tuple(name[len("inference_") :] for name in _FIELDS if name.startswith("inference_"))
_DERIVED = (
    "ipus_per_replica",
    "inference_layers_per_ipu",
    "inference_ipus_per_replica",
    "inference_matmul_proportion",
    *(
        f"{prefix}{layer}_serialization_factor"
        for prefix in ("", "inference_")
        for layer in ("embedding", "projection")
    ),
)
_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")


def _refuse_unknown(values: Mapping[str, Any]) -> None:
    for name in values:
        if name not in _FIELDS:
            near = difflib.get_close_matches(name, _FIELDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise IPUConfigError(f"IPUConfig has no field {name!r}.{hint} Its fields: {', '.join(sorted(_FIELDS))}.")


def _check_type(name: str, value: Any, kind: type, rule: str) -> None:
    if not isinstance(value, kind):
        raise IPUConfigError(f"{name} {value!r} is a {type(value).__name__}. Use {rule}.")


def _check_integer(name: str, value: Any, minimum: int, optional: bool = False) -> None:
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise IPUConfigError(
            f"{name} {value!r} must be a whole number of at least {minimum}. Use {name}={minimum} or more."
        )


def _check_counts(name: str, values: Any, minimum: int) -> None:
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise IPUConfigError(
            f"{name} {values!r} must be a list with one whole number for each IPU, such as [3, 3, 3, 3]."
        )
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            wildcard = ", or -1 for what remains" if minimum == -1 else ""
            raise IPUConfigError(
                f"{name} {list(values)} holds {value!r}. Each entry is a whole number of at least 0{wildcard}."
            )


def _parse(name: str, text: str) -> Any:
    if name in _BOOLEANS:
        if text.lower() in ("true", "1", "y", "yes"):
            return True
        if text.lower() in ("false", "0", "n", "no"):
            return False
        raise IPUConfigError(f"{name}={text} is neither true nor false. Write {name}=true or {name}=false.")
    if name in ("output_mode", "executable_cache_dir"):
        return text
    if text.startswith("[") and text.endswith("]"):
        return tuple(_number(name, item) for item in text[1:-1].split())
    return None if text.lower() in ("none", "null") else _number(name, text)


def _number(name: str, text: str) -> Union[int, float]:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise IPUConfigError(
        f"{name}={text} is not a number. Write a number, or a list with spaces such as {name}=[3 3 3 3]."
    )
