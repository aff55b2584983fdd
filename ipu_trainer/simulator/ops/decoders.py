"""poptorch.ctc_beam_search_decoder: the most probable label sequences of a CTC model, by prefix beam search.

Source of the algorithm: Hannun et al., arXiv:1408.2873, section 3. Plain Python over lists, for
testing programs: slow.
"""

from __future__ import annotations

import math
from typing import Dict, List, Tuple

import torch

from ipu_trainer.simulator.ops.tensor_ops import require_tensor

Prefix = Tuple[int, ...]


def ctc_beam_search_decoder(
    probs: torch.Tensor, lengths: torch.Tensor, blank: int = 0, beam_width: int = 100, top_paths: int = 1
) -> List[torch.Tensor]:
    """Decode log probabilities (time, micro_batch, classes) of which `lengths` (micro_batch,) steps count.

    Returns the log probabilities (micro_batch, top_paths), the lengths (micro_batch, top_paths) and the labels
    (micro_batch, top_paths, time) of the best sequences, filled up with blanks.
    """
    for name, value in (("probs", probs), ("lengths", lengths)):
        require_tensor(value, f"ctc_beam_search_decoder: {name} must be a torch.tensor argument.")
    num_steps, micro_batch, _ = probs.shape
    scores = torch.full((micro_batch, top_paths), -math.inf)
    sizes = torch.zeros((micro_batch, top_paths), dtype=torch.int32)
    labels = torch.full((micro_batch, top_paths, num_steps), blank, dtype=torch.int32)
    for sample in range(micro_batch):
        steps = probs[: int(lengths[sample]), sample].tolist()
        for path, (prefix, score) in enumerate(_search(steps, blank, beam_width)[:top_paths]):
            scores[sample, path] = score
            sizes[sample, path] = len(prefix)
            labels[sample, path, : len(prefix)] = torch.tensor(prefix, dtype=torch.int32)
    return [scores.to(probs), sizes.to(probs.device), labels.to(probs.device)]


def _search(steps: List[List[float]], blank: int, beam_width: int) -> List[Tuple[Prefix, float]]:
    # prefix -> (log probability that it ends in a blank, that it ends in its last label)
    beam: Dict[Prefix, Tuple[float, float]] = {(): (0.0, -math.inf)}
    for step in steps:
        extended: Dict[Prefix, List[float]] = {}
        for prefix, (in_blank, in_label) in beam.items():
            for label, log_p in enumerate(step):
                if label == blank:
                    _add(extended, prefix, 0, _log_sum(in_blank, in_label) + log_p)
                elif prefix and label == prefix[-1]:
                    _add(extended, prefix, 1, in_label + log_p)  # the same label, held
                    _add(extended, (*prefix, label), 1, in_blank + log_p)  # the same label, again
                else:
                    _add(extended, (*prefix, label), 1, _log_sum(in_blank, in_label) + log_p)
        best = sorted(extended.items(), key=lambda item: _log_sum(*item[1]), reverse=True)[:beam_width]
        beam = {prefix: (ends[0], ends[1]) for prefix, ends in best}
    return sorted(((p, _log_sum(*ends)) for p, ends in beam.items()), key=lambda item: item[1], reverse=True)


def _add(beam: Dict[Prefix, List[float]], prefix: Prefix, end: int, log_p: float) -> None:
    ends = beam.setdefault(prefix, [-math.inf, -math.inf])
    ends[end] = _log_sum(ends[end], log_p)


def _log_sum(a: float, b: float) -> float:
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
