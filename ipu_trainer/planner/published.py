"""Published runs as rows that the model can be held against. published.csv names its source on every row.

A row of your own needs the same columns; `model` is a name below or the path of a Transformers config.json.
"""

from __future__ import annotations

import csv
import functools
import importlib.resources
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import transformers

from ipu_trainer.machine.hardware import BOW, GC200, IPU
from ipu_trainer.planner.job import Job
from ipu_trainer.planner.workload import Workload, measure

_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
# The published models' shapes, as their own config.json files have them. The planner itself knows no names.
_CONFIGS: Dict[str, Tuple[str, Dict[str, Any]]] = {
    "BERT-base": ("BertConfig", {}),
    "BERT-large": ("BertConfig", _LARGE),
    "RoBERTa-base": ("RobertaConfig", {"vocab_size": 50265, "max_position_embeddings": 514}),
    "GPT2-small": ("GPT2Config", {}),
    "GPT2-medium": ("GPT2Config", {"n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "GPT2-large": ("GPT2Config", {"n_embd": 1280, "n_layer": 36, "n_head": 20}),
    "ViT-B/16": ("ViTConfig", {}),
    "HuBERT-base": ("HubertConfig", {}),
}


@dataclass(frozen=True)
class PublishedRow:
    """throughput is samples a second (packs for packed rows), None where only the configuration was published."""

    source: str
    model: str
    task: str
    sequence: Optional[int]
    job: Optional[Job]
    ipu: IPU
    throughput: Optional[float]
    includes_evaluation: bool
    fits: bool
    not_modelled: str

    @property
    def workload(self) -> Workload:
        return _workload(self.model, self.task, self.sequence)

    @property
    def group(self) -> Tuple[Any, ...]:
        """What is left out together: one model's shape under one code base."""
        assert self.job is not None
        return (self.model, self.sequence, self.job.micro_batch, len(self.job.layers_per_ipu), self.job.own_loop)

    @property
    def is_fitted(self) -> bool:
        return self.job is not None and self.throughput is not None and not self.includes_evaluation


def read_rows(path: Optional[Path] = None) -> List[PublishedRow]:
    """Rows of a CSV, by default the packaged one. Raises ValueError naming line and column of what cannot be read."""
    text = path.read_text(encoding="utf-8") if path else _packaged()
    rows = []
    for line, row in enumerate(csv.DictReader(io.StringIO(text)), start=2):
        try:
            rows.append(_row(row))
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{path or 'published.csv'}, line {line}: {error}. Every column of published.csv is needed."
            ) from error
    return rows


def _packaged() -> str:
    if hasattr(importlib.resources, "files"):
        return (importlib.resources.files("ipu_trainer.planner") / "published.csv").read_text(encoding="utf-8")
    return importlib.resources.read_text("ipu_trainer.planner", "published.csv", encoding="utf-8")


def _row(row: Dict[str, str]) -> PublishedRow:
    job = None
    if not row["not_modelled"]:
        job = Job(
            tuple(int(word) for word in row["layers_per_ipu"].split()),
            int(row["micro_batch"]),
            int(row["accumulation"]),
            int(row["replicas"]),
            int(row["device_iterations"]),
            row["recompute"] == "True",
            row["sharded_state"] == "True",
            row["state_off_chip"] == "True",
            tuple(float(word) for word in row["matmul_proportion"].split()),
            row["optimizer"],
            float(row["head_fraction"]),
            int(row["head_serialization"]),
            row["loop"] == "own",
        )
    return PublishedRow(
        row["source"],
        row["model"],
        row["task"],
        int(row["sequence"]) if row["sequence"].isdigit() else None,
        job,
        BOW if row["chip"] == "Bow" else GC200,
        float(row["throughput"]) if row["throughput"] else None,
        row["includes_evaluation"] == "True",
        row["fits"] == "True",
        row["not_modelled"],
    )


@functools.lru_cache(maxsize=None)
def _workload(model: str, task: str, sequence: Optional[int]) -> Workload:
    if model in _CONFIGS:
        kind, values = _CONFIGS[model]
        config = getattr(transformers, kind)(**values)
    else:
        config = transformers.AutoConfig.from_pretrained(model)
    if sequence and getattr(config, "max_position_embeddings", sequence) < sequence:
        config.max_position_embeddings = sequence
    return measure(config, task, sequence)
