"""Published runs as rows that the model can be held against. published.csv names its source on every row.

A row of your own needs the same columns; `model` is a name below or the path of a Transformers config.json. Rows in the words
of their sources (collect.py says which columns) are read too.
"""

from __future__ import annotations

import csv
import functools
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import transformers

from ipu_trainer.errors import UserError
from ipu_trainer.machine.hardware import BOW, GC200, IPU
from ipu_trainer.planner.collect import convert
from ipu_trainer.planner.constants import FAMILIES, packaged
from ipu_trainer.planner.job import Job
from ipu_trainer.planner.workload import Workload, measure

_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
# The published models' shapes, as their own config.json files have them. The planner itself knows no names.
_BASE_AUDIO = {"apply_spec_augment": False}
CONFIGS: Dict[str, Tuple[str, Dict[str, Any]]] = {
    "BERT-base": ("BertConfig", {}),
    "BERT-large": ("BertConfig", _LARGE),
    "RoBERTa-base": ("RobertaConfig", {"vocab_size": 50265, "max_position_embeddings": 514}),
    "RoBERTa-large": ("RobertaConfig", {"vocab_size": 50265, "max_position_embeddings": 514, **_LARGE}),
    "DeBERTa-base": ("DebertaConfig", {"vocab_size": 50265}),
    "DistilBERT": ("DistilBertConfig", {}),
    "GPT2-small": ("GPT2Config", {}),
    "GPT2-medium": ("GPT2Config", {"n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "GPT2-large": ("GPT2Config", {"n_embd": 1280, "n_layer": 36, "n_head": 20}),
    "GPT2-xl": ("GPT2Config", {"n_embd": 1600, "n_layer": 48, "n_head": 25}),
    "ViT-B/16": ("ViTConfig", {}),
    "ViT-L/16": ("ViTConfig", _LARGE),
    "Swin-T": ("SwinConfig", {}),
    "Swin-S": ("SwinConfig", {"depths": [2, 2, 18, 2]}),
    "Swin-B": ("SwinConfig", {"depths": [2, 2, 18, 2], "embed_dim": 128, "num_heads": [4, 8, 16, 32]}),
    "Swin-L": ("SwinConfig", {"depths": [2, 2, 18, 2], "embed_dim": 192, "num_heads": [6, 12, 24, 48]}),
    "ConvNeXt-base": ("ConvNextConfig", {"depths": [3, 3, 27, 3], "hidden_sizes": [128, 256, 512, 1024]}),
    "HuBERT-base": ("HubertConfig", _BASE_AUDIO),
    "Wav2Vec2-base": ("Wav2Vec2Config", _BASE_AUDIO),
    "Wav2Vec2-large": ("Wav2Vec2Config", {**_LARGE, **_BASE_AUDIO}),
    "T5-small": ("T5Config", {}),
    "T5-base": ("T5Config", {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}),
    "T5-large": ("T5Config", {"d_model": 1024, "d_ff": 4096, "num_layers": 24, "num_heads": 16}),
    "BART-base": (
        "BartConfig",
        {
            "d_model": 768,
            "encoder_layers": 6,
            "decoder_layers": 6,
            "encoder_attention_heads": 12,
            "decoder_attention_heads": 12,
            "encoder_ffn_dim": 3072,
            "decoder_ffn_dim": 3072,
        },
    ),
    "BART-large": ("BartConfig", {}),
}


@dataclass(frozen=True)
class PublishedRow:
    """throughput is samples a second (packs for packed rows), None where only the configuration was published."""

    source: str
    model: str
    task: str
    sequence: Optional[int]
    target: Optional[int]  # the decoder's length, where it is another one
    job: Optional[Job]
    ipu: IPU
    throughput: Optional[float]
    includes_evaluation: bool
    fits: bool
    not_modelled: str

    @property
    def workload(self) -> Workload:
        return _workload(self.model, self.task, self.sequence, self.target)

    @property
    def family(self) -> str:
        """What it is calibrated with, or "unseen"."""
        return FAMILIES.get(self.workload.family, "unseen")

    @property
    def group(self) -> Tuple[Any, ...]:
        """What is left out together: one model's shape under one code base."""
        assert self.job is not None
        return (self.model, self.sequence, self.job.micro_batch, len(self.job.layers_per_ipu), self.job.own_loop)

    @property
    def is_timed(self) -> bool:
        """It has a job and a throughput, which may include evaluation."""
        return self.job is not None and self.throughput is not None

    @property
    def is_fitted(self) -> bool:
        """It is timed without evaluation, and its family is one that is calibrated."""
        return self.is_timed and not self.includes_evaluation and self.family != "unseen"


def read_rows(path: Optional[Path] = None) -> List[PublishedRow]:
    """Rows of a CSV, by default the packaged one. Raises UserError naming line and column of what cannot be read."""
    text = path.read_text(encoding="utf-8") if path else packaged("published.csv")
    rows = []
    for line, row in enumerate(csv.DictReader(io.StringIO(text)), start=2):
        try:
            rows.append(_row(convert(row) if "throughput_value" in row else row))
        except (KeyError, ValueError) as error:
            raise UserError(
                f"{path or 'published.csv'}, line {line}: {error}. Every column of published.csv is needed."
            ) from error
    return rows


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
            row["float8_stash"] == "True",
        )
    source, _, target = row["sequence"].partition("+")
    return PublishedRow(
        row["source"],
        row["model"],
        row["task"],
        int(source) if source.isdigit() else None,
        int(target) if target.isdigit() else None,
        job,
        BOW if row["chip"] == "Bow" else GC200,
        float(row["throughput"]) if row["throughput"] else None,
        row["includes_evaluation"] == "True",
        row["fits"] == "True",
        row["not_modelled"],
    )


@functools.lru_cache(maxsize=None)
def _workload(model: str, task: str, sequence: Optional[int], target: Optional[int]) -> Workload:
    if model in CONFIGS:
        kind, values = CONFIGS[model]
        config = getattr(transformers, kind)(**values)
    else:
        config = transformers.AutoConfig.from_pretrained(model)
    if sequence and getattr(config, "max_position_embeddings", sequence) < sequence:
        config.max_position_embeddings = sequence
    if sequence and hasattr(config, "patch_size") and getattr(config, "model_type", "") == "vit":
        config.image_size = math.isqrt(sequence - 1) * config.patch_size  # patches in a square, and one class token
    return measure(config, task, None if task == "image-classification" else sequence, target)
