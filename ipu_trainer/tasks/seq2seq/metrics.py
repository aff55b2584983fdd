"""BLEU and chrF by sacrebleu, for generated texts and for a baseline made of the function's name alone."""

from __future__ import annotations

import re
from typing import Any, Callable, Dict, List, Sequence

import numpy as np
import sacrebleu

from ipu_trainer.tasks.seq2seq.pairs import Pair


def text_scores(written: Sequence[str], references: Sequence[str]) -> Dict[str, float]:
    """Corpus BLEU and chrF, 0 to 100 each, and the share of texts that are exactly right."""
    if not written:
        return {"bleu": float("nan"), "chrf": float("nan"), "exact_match": float("nan")}
    exact = [one.strip() == other.strip() for one, other in zip(written, references)]
    return {
        "bleu": float(sacrebleu.corpus_bleu(list(written), [list(references)]).score),
        "chrf": float(sacrebleu.corpus_chrf(list(written), [list(references)]).score),
        "exact_match": float(np.mean(exact)),
    }


def decoded(tokenizer: Any, ids: Any) -> List[str]:
    """Texts of token ids, shape (samples, length); ids below zero are padding."""
    table = np.asarray(ids)
    table = np.where(table < 0, tokenizer.pad_token_id, table)
    return [text.strip() for text in tokenizer.batch_decode(table, skip_special_tokens=True)]


def generation_metrics(tokenizer: Any) -> Callable[[Any], Dict[str, float]]:
    """compute_metrics for predict_with_generate."""

    def compute(prediction: Any) -> Dict[str, float]:
        tokens = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        written = decoded(tokenizer, tokens)
        lengths = (np.asarray(tokens) > 0) & (np.asarray(tokens) != tokenizer.pad_token_id)
        scores = text_scores(written, decoded(tokenizer, prediction.label_ids))
        return {**scores, "generated_tokens": float(lengths.sum(axis=1).mean())}

    return compute


def baseline_texts(pairs: Sequence[Pair]) -> List[str]:
    """What one can say without a model: the words of a function's name, or else the source's first words."""
    texts = []
    for pair in pairs:
        name = re.match(r"(?:@.*\n)*\s*(?:async\s+)?def\s+(\w+)", pair.source)
        if name:
            words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.group(1)).replace("_", " ").split()
            texts.append(" ".join(words).lower().capitalize() + ".")
        else:
            texts.append(" ".join(pair.source.split()[:10]))
    return texts
