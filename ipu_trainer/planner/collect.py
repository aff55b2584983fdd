"""A published configuration as its source states it -> a row of published.csv. What sources leave unsaid is read by the rules here.

Columns: source, model, task, hidden, layers, heads, seq_or_tokens, micro_batch, layers_per_ipu, ipus_per_replica, replication,
gradient_accumulation, device_iterations, recompute, rts, optimizer_offchip, matmul_proportion, optimizer, pod, system,
throughput_value, throughput_unit, note. Empty is not stated. The readings:

- Chip: Bow where system says so, GC200 otherwise.
- Loop: Graphcore's benchmark applications, MLPerf and Paddle drive the device from a loop of their own; tutorials, notebooks and
  the Transformers trainer from a Python loop that reads every step's outputs.
- Recomputation and replicated tensor sharding are on unless they are stated to be off. Optimizer state is off chip where it is
  stated, or where neither its place nor sharding is.
- BERT's pre-training scores masked tokens only: 20, 56 and 76 of 128, 384 and 512. GPT-2's head runs in four pieces.
- Packed sequences count as packs, two sequences each.
- A placement with one entry less than there are IPUs has its embedding alone on IPU 0; MLPerf's counts attention blocks.
"""

from __future__ import annotations

import re
from typing import Dict, List, Optional, Tuple

_MASKED = {128: 20, 384: 56, 512: 76}
_MLPERF_PLACEMENT = "1 2 3 4 3 4 3 4"
_TUTORIALS = re.compile(r"huggingface/optimum|^hf:|model_cards|tutorial|notebook", re.IGNORECASE)
# Patterns of models -> names in published.CONFIGS. The first that matches wins.
_NAMES: Tuple[Tuple[str, str], ...] = (
    (r"dino|mae\b|clip|dall|lxmert|conformer|groupbert|gpt-?j|gpt-?3|flan|packed t5", ""),
    (r"roberta-?large", "RoBERTa-large"),
    (r"roberta", "RoBERTa-base"),
    (r"deberta-?base", "DeBERTa-base"),
    (r"distilbert", "DistilBERT"),
    (r"^bert-?large", "BERT-large"),
    (r"^bert-?base", "BERT-base"),
    (r"gpt-?2?-?xl", "GPT2-xl"),
    (r"gpt-?2?-?large", "GPT2-large"),
    (r"gpt-?2?-?medium", "GPT2-medium"),
    (r"gpt", "GPT2-small"),
    (r"^(deit|vit)-?b", "ViT-B/16"),
    (r"^(deit|vit)-?l", "ViT-L/16"),
    (r"hubert-?base", "HuBERT-base"),
    (r"wav2vec2-?base", "Wav2Vec2-base"),
    (r"wav2vec2-?large", "Wav2Vec2-large"),
    (r"t5-?small", "T5-small"),
    (r"t5-?base", "T5-base"),
    (r"t5-?large", "T5-large"),
    (r"bart-?base", "BART-base"),
    (r"bart-?large", "BART-large"),
    (r"swin-?t", "Swin-T"),
    (r"swin-?s", "Swin-S"),
    (r"swin-?b", "Swin-B"),
    (r"swin-?l", "Swin-L"),
    (r"convnext-?base", "ConvNeXt-base"),
)
_TASKS: Tuple[Tuple[str, str], ...] = (
    (r"squad|question", "question-answering"),
    (r"ner\b|token|conll", "token-classification"),
    (r"glue|mrpc|sst|classification \(text|sequence|multi", "sequence-classification"),
    (r"mlperf|pre-?train|mlm|masked", "masked-lm"),
)


def convert(row: Dict[str, str]) -> Dict[str, str]:
    """One row of published.csv, with not_modelled saying why where it has no job. Raises KeyError for a column that is missing."""
    model = _name(row["model"])
    task = _task(model, row["task"])
    sequence = _sequence(row["seq_or_tokens"])
    layers = _layers(row, model)
    masked = task == "masked-lm" and model.startswith(("BERT", "RoBERTa"))
    first = int(sequence.split("+")[0]) if sequence else 0
    own_loop = not _TUTORIALS.search(row["source"])
    packed = "packed" in (row["task"] + row["model"]).lower() and row["throughput_unit"].startswith("sequence")
    throughput = row["throughput_value"]
    result = {
        "source": row["source"],
        "model": model or row["model"],
        "task": task if model else "",
        "sequence": sequence,
        "micro_batch": row["micro_batch"],
        "layers_per_ipu": layers,
        "replicas": row["replication"] or "1",
        "accumulation": row["gradient_accumulation"],
        "device_iterations": row["device_iterations"] or "1",
        "recompute": str(not row["recompute"].lower().startswith("false")),
        "sharded_state": str(not row["rts"].lower().startswith("false")),
        "state_off_chip": str(
            row["optimizer_offchip"].lower().startswith("true") or not (row["optimizer_offchip"] or row["rts"])
        ),
        "matmul_proportion": " ".join(re.findall(r"\d*\.?\d+", row["matmul_proportion"])) or "0.25",
        "optimizer": _optimizer(row["optimizer"]),
        "chip": "Bow" if row["system"] == "Bow" else "GC200",
        "loop": "own" if own_loop else "trainer",
        "head_fraction": f"{_MASKED.get(first, 0.15 * first) / first:.6g}" if masked and first else "1",
        "head_serialization": "4" if model.startswith("GPT") else "1",
        "float8_stash": str("float8" in row["note"].lower()),
        "includes_evaluation": str(bool(re.search(r"includes \d|one evaluation|includes evaluation", row["note"]))),
        "fits": "True",
        "throughput": f"{float(throughput) / 2:.12g}" if packed and throughput else throughput,
        "not_modelled": "",
    }
    result["not_modelled"] = _why_not(row, result, bool(model))
    if not result["accumulation"] and not result["not_modelled"]:
        result["accumulation"] = "128"  # memory alone is asked, which depends on it only through the pipeline's depth
    return result


def _name(model: str) -> str:
    return next((name for pattern, name in _NAMES if re.search(pattern, model.strip().lower())), "")


def _task(model: str, text: str) -> str:
    for names, task in (
        (("GPT",), "causal-lm"),
        (("ViT", "Swin", "ConvNeXt"), "image-classification"),
        (("T5", "BART"), "seq2seq-lm"),
        (("HuBERT", "Wav2Vec2"), "audio-classification"),
    ):
        if model.startswith(names):
            return task
    return next((task for pattern, task in _TASKS if re.search(pattern, text.lower())), "question-answering")


def _sequence(text: str) -> str:
    seconds = re.fullmatch(r"([\d.]+) ?s audio", text.strip())
    if seconds:
        return str(int(float(seconds.group(1)) * 16000))
    return text.strip() if re.fullmatch(r"\d+(\+\d+)?", text.strip()) else ""


def _layers(row: Dict[str, str], model: str) -> str:
    """Counts separated by spaces, one for each IPU; empty where they are not known."""
    text, depth = row["layers_per_ipu"], int(row["ipus_per_replica"] or 0)
    if "att" in text:
        blocks = {int(ipu): count for ipu, count in re.findall(r"\[(\d+) \[(\d+) \d+\]\]", text)}
        return " ".join(blocks[ipu] for ipu in sorted(blocks))
    lists: List[List[int]] = [[int(n) for n in part.split()] for part in re.findall(r"\[([\d ]+)\]", text)]
    if len(lists) == 2 and len(lists[0]) == len(lists[1]):
        encoder, decoder = lists
        last = max(ipu for ipu, count in enumerate(encoder) if count)
        if any(decoder[:last]):
            return ""  # the decoder begins before the encoder ends: not one pipeline in the order of execution
        lists = [[a + b for a, b in zip(encoder, decoder)]]
    if len(lists) == 1:
        counts = [0] * (depth == len(lists[0]) + 1) + lists[0]
        return " ".join(map(str, counts))
    if text or not depth:
        return ""
    if model == "BERT-large" and depth == 8 and "mlperf" in row["task"].lower():
        return _MLPERF_PLACEMENT
    return {("BERT-base", 4): "0 4 4 4", ("BERT-base", 2): "6 6", ("BERT-large", 4): "3 7 7 7"}.get((model, depth), "")


def _optimizer(text: str) -> str:
    name = text.strip().lower()
    return name if name in ("sgd", "adam", "adamw", "lamb") else "adamw"


def _why_not(row: Dict[str, str], result: Dict[str, str], known: bool) -> str:
    missing: Optional[str] = None
    if re.search(r"phased|TP \d", row["task"]):
        missing = "not a pipeline: tensor parallel, in phases"
    elif not known:
        missing = f"no shape for {row['model']}"
    elif not result["micro_batch"] or not result["layers_per_ipu"]:
        missing = "micro-batch or placement not published"
    elif not result["sequence"] and result["task"] != "image-classification":
        missing = "sequence length not published"
    elif result["throughput"] and not result["accumulation"]:
        missing = "accumulation not published"
    return missing or ""
