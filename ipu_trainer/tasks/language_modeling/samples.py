"""Texts that the model generates, printed while it trains, and its perplexity, in which every predicted token counts once."""

from __future__ import annotations

import contextlib
import sys
from typing import Any, Callable, Dict, Iterator, List, Sequence

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm
from transformers import TrainerCallback

from ipu_trainer.tasks.language_modeling.corpus import IGNORED


def continuations(model: Any, tokenizer: Any, prompts: Sequence[str], new_tokens: int, seed: int) -> List[str]:
    """Each prompt with what a causal model writes after it: sampled by seed, top 40, temperature 0.8."""
    positions = getattr(model.config, "max_position_embeddings", None)
    texts = []
    device = next(model.parameters()).device
    with _in_evaluation(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for number, prompt in enumerate(prompts):
            ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
            if ids.shape[1] == 0:
                ids = torch.tensor([[tokenizer.eos_token_id]])
            if positions is not None:
                ids = ids[:, -max(1, positions - new_tokens) :]
            ids = ids.to(device)
            torch.manual_seed(seed + number)
            written = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                do_sample=True,
                top_k=40,
                temperature=0.8,
                pad_token_id=tokenizer.eos_token_id,
            )
            texts.append(tokenizer.decode(written[0], skip_special_tokens=True))
    return texts


def fillings(model: Any, tokenizer: Any, prompts: Sequence[str]) -> List[str]:
    """Each prompt with one token masked, and what a masked model puts there."""
    texts = []
    with _in_evaluation(model), torch.no_grad():
        for prompt in prompts:
            ids = tokenizer(prompt, return_tensors="pt")["input_ids"].to(next(model.parameters()).device)
            place = ids.shape[1] // 2
            truth = tokenizer.decode(ids[0, place : place + 1])
            ids[0, place] = tokenizer.mask_token_id
            best = model(input_ids=ids).logits[0, place].topk(3).indices
            shown = tokenizer.decode(ids[0])
            texts.append(f"{shown}   truth {truth!r}, model {[tokenizer.decode([int(token)]) for token in best]}")
    return texts


class PrintSamples(TrainerCallback):  # type: ignore[misc]
    """After each evaluation, some text. model() gives the model with its newest weights, to call on the host."""

    def __init__(self, model: Any, write: Any) -> None:
        self.model, self.write = model, write

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        perplexity = metrics.get("eval_perplexity") if metrics else None
        head = f"--- step {state.global_step}" + (f", validation perplexity {perplexity:.1f}" if perplexity else "")
        body = "\n".join(f"| {line}" for text in self.write(self.model()) for line in [*text.splitlines(), ""][:12])
        tqdm.write(f"\n{head}\n{body}", file=sys.stderr)  # above the progress bar


@contextlib.contextmanager
def _in_evaluation(model: Any) -> Iterator[None]:
    """Dropout off inside the block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def token_losses(causal: bool) -> Callable[[Any, torch.Tensor], torch.Tensor]:
    """For Trainer's preprocess_logits_for_metrics: (nats, predicted tokens) of each row, float32, shape (rows, 2).

    Keeps evaluation from holding logits of the whole validation set.
    """

    def of_batch(logits: Any, labels: torch.Tensor) -> torch.Tensor:
        scores = logits[0] if isinstance(logits, (tuple, list)) else logits
        if causal:
            scores, labels = scores[:, :-1], labels[:, 1:]
        nats = functional.cross_entropy(
            scores.float().reshape(-1, scores.shape[-1]), labels.reshape(-1), ignore_index=IGNORED, reduction="none"
        )
        counted = (labels != IGNORED).sum(dim=1).float()
        return torch.stack([nats.reshape(labels.shape).sum(dim=1), counted], dim=1)

    return of_batch


def perplexity(prediction: Any) -> Dict[str, float]:
    """compute_metrics for token_losses: perplexity, nats a token, and how many tokens were predicted."""
    rows = np.asarray(prediction.predictions, dtype=np.float64)
    total, count = rows[:, 0].sum(), rows[:, 1].sum()
    nats = total / count if count else float("nan")
    return {"perplexity": float(np.exp(min(nats, 700.0))), "nats_per_token": float(nats), "num_tokens": float(count)}
