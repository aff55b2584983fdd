"""A published configuration as its source states it -> a row of published.csv. What sources leave unsaid is read by the rules here.

Columns: source, model, task, precision, layers, seq_or_tokens, micro_batch, layers_per_ipu, ipus_per_replica, replication,
gradient_accumulation, device_iterations, recompute, rts, optimizer_offchip, matmul_proportion, optimizer, pod, system,
throughput_value, throughput_unit, note. Empty is not stated. The readings:

- Chip: Bow where system says so, GC200 otherwise.
- Loop: Graphcore's benchmark applications, MLPerf and Paddle drive the device from a loop of their own; tutorials, notebooks and
  the Transformers trainer from a Python loop that reads every step's outputs.
- Recomputation and replicated tensor sharding are on unless they are stated to be off. Optimizer state is off chip where it is
  stated, or where neither its place nor sharding is.
- BERT's pre-training scores masked tokens only: 20, 56 and 76 of 128, 384 and 512. GPT-2's head runs in four pieces.
- Packed sequences count as packs, two sequences each; tokens a second are divided by the length.
- A placement with one entry less than there are IPUs has its embedding alone on IPU 0; MLPerf's counts attention blocks.
"""

from __future__ import annotations

import re
from typing import Dict, List, Tuple

_MASKED = {128: 20, 384: 56, 512: 76}
_MLPERF_PLACEMENT = "1 2 3 4 3 4 3 4"
_TUTORIALS = re.compile(r"huggingface/optimum|^hf:|model_cards|tutorial|notebook", re.IGNORECASE)
# Patterns of models -> names in published.CONFIGS. The first that matches wins.
_NAMES: Tuple[Tuple[str, str], ...] = (
    (r"dino|mae\b|clip|dall|lxmert|conformer|groupbert|gpt[-_ ]?j|gpt[-_ ]?3|flan|packed t5", ""),
    (r"roberta[-_ ]?large", "RoBERTa-large"),
    (r"roberta", "RoBERTa-base"),
    (r"deberta[-_ ]?base", "DeBERTa-base"),
    (r"distilbert", "DistilBERT"),
    (r"^bert[-_ ]?large", "BERT-large"),
    (r"^bert[-_ ]?base", "BERT-base"),
    (r"gpt[-_ ]?2?[-_ ]?xl", "GPT2-xl"),
    (r"gpt[-_ ]?2?[-_ ]?large", "GPT2-large"),
    (r"gpt[-_ ]?2?[-_ ]?medium", "GPT2-medium"),
    (r"gpt", "GPT2-small"),
    (r"^(deit|vit)[-_ ]?b", "ViT-B/16"),
    (r"^(deit|vit)[-_ ]?l", "ViT-L/16"),
    (r"hubert[-_ ]?base", "HuBERT-base"),
    (r"wav2vec2[-_ ]?base", "Wav2Vec2-base"),
    (r"wav2vec2[-_ ]?large", "Wav2Vec2-large"),
    (r"t5[-_ ]?small", "T5-small"),
    (r"t5[-_ ]?base", "T5-base"),
    (r"t5[-_ ]?large", "T5-large"),
    (r"bart[-_ ]?base", "BART-base"),
    (r"bart[-_ ]?large", "BART-large"),
    (r"swin[-_ ]?t", "Swin-T"),
    (r"swin[-_ ]?s", "Swin-S"),
    (r"swin[-_ ]?b", "Swin-B"),
    (r"swin[-_ ]?l", "Swin-L"),
    (r"convnext[-_ ]?base", "ConvNeXt-base"),
)
_TASKS: Tuple[Tuple[str, str], ...] = (
    (r"squad|question", "question-answering"),
    (r"ner\b|token|conll", "token-classification"),
    (r"glue|mrpc|sst|classification \(text|sequence|multi", "sequence-classification"),
    (r"mlperf|pre[-_ ]?train|mlm|masked", "masked-lm"),
)


def convert(row: Dict[str, str]) -> Dict[str, str]:
    """One row of published.csv, with not_modelled saying why where it has no job. Raises KeyError for a column that is missing."""
    model = next((name for pattern, name in _NAMES if re.search(pattern, row["model"].strip().lower())), "")
    task = _task(model, row["task"])
    sequence = _sequence(row["seq_or_tokens"])
    layers = _layers(row, model)
    masked = task == "masked-lm" and model.startswith(("BERT", "RoBERTa"))
    first = int(sequence.split("+")[0]) if sequence else 0
    optimizer = row["optimizer"].strip().lower()
    own_loop = not _TUTORIALS.search(row["source"])
    packed = "packed" in (row["task"] + row["model"]).lower() and row["throughput_unit"].startswith("sequence")
    throughput = _samples_per_s(row, first, packed)
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
        "matmul_proportion": _proportions(row["matmul_proportion"], len(layers.split())),
        "optimizer": optimizer if optimizer in ("sgd", "adam", "adamw", "lamb") else "adamw",
        "chip": "Bow" if row["system"] == "Bow" else "GC200",
        "loop": "own" if own_loop else "trainer",
        "head_fraction": f"{_MASKED.get(first, 0.15 * first) / first:.6g}" if masked and first else "1",
        "head_serialization": "4" if model.startswith("GPT") else "1",
        "float8_stash": str("float8" in row["note"].lower()),
        "includes_evaluation": str(bool(re.search(r"includes \d|one evaluation|includes evaluation", row["note"]))),
        "fits": "True",
        "throughput": throughput,
        "not_modelled": "",
    }
    result["not_modelled"] = _why_not(row, result, bool(model))
    if not result["accumulation"] and not result["not_modelled"]:
        result["accumulation"] = "128"  # memory alone is asked, which depends on it only through the pipeline's depth
    return result


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


def _samples_per_s(row: Dict[str, str], tokens: int, packed: bool) -> str:
    value, per = row["throughput_value"], 2 if packed else 1
    if value and row["throughput_unit"].startswith("token"):
        per = tokens
    return value if per == 1 or not value else f"{float(value) / per:.12g}" if per else ""


def _proportions(text: str, num_ipus: int) -> str:
    """One value, or one for each IPU; that of the first again where a separate embedding has none of its own."""
    values = re.findall(r"\d*\.?\d+", text) or ["0.25"]
    return " ".join(values[:1] * (len(values) == num_ipus - 1 > 1) + values)


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


def _why_not(row: Dict[str, str], result: Dict[str, str], known: bool) -> str:
    layers = [int(count) for count in result["layers_per_ipu"].split()]
    blocks = [int(count) for count in re.findall(r"\d+", row.get("layers", ""))]
    counts = ("micro_batch", "replicas", "device_iterations", "accumulation")
    if re.search(r"phased|TP \d", row["task"]):
        return "not a pipeline: tensor parallel, in phases"
    if not known:
        return f"no shape for {row['model']}"
    if not result["micro_batch"] or not layers:
        return "micro-batch or placement not published"
    if blocks and sum(blocks) != sum(layers):
        return f"the placement has {sum(layers)} layers, the model {sum(blocks)}"
    if len(result["matmul_proportion"].split()) not in (1, len(layers)):
        return "matmul proportions are not one for each IPU"
    if not result["sequence"] and result["task"] != "image-classification":
        return "sequence length not published"
    if result["throughput"] and not result["accumulation"]:
        return "accumulation not published"
    if any(not re.fullmatch(r"[1-9]\d*", result[name]) for name in counts if result[name]):
        return "counts that are not whole numbers"
    if row.get("precision", "").startswith("32"):
        return "float32"
    return ""
