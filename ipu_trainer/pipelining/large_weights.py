"""Large embeddings and projections in pieces that fit an IPU's memory; every change can be undone.

Serialised (one IPU): the module has its weight, and computes its forward piece by piece. Split (several IPUs): each piece is a
separate weight during training, and undo() restores the whole one. Numbers change by the order of float32 sums alone.
"""

from __future__ import annotations

import functools
from typing import Any, Callable, Dict, List, Sequence, Tuple

import torch
from torch import nn

from ipu_trainer.machine.placement import ipu_of_layer
from ipu_trainer.pipelining.anatomy import PipeliningError

Undo = Callable[[], None]


def serialise_projection(module: nn.Module, factor: int, poptorch: Any) -> Undo:
    """Multiply with the weight in `factor` pieces of its outputs. Raises PipeliningError if factor does not divide them."""
    weight = _matrix(module, "projection")
    _check_divides(weight.shape[0], factor, "outputs of the projection", "projection_serialization_factor")
    mode = poptorch.MatMulSerializationMode.OutputChannels

    def forward(states: torch.Tensor, *_: Any, **__: Any) -> Any:
        bias: Any = getattr(module, "bias", None)
        if not poptorch.isRunningOnIpu():  # a tail of evaluation, on the host
            return nn.functional.linear(states, weight, bias)
        out = poptorch.serializedMatMul(states, weight.t(), mode, factor, True)
        return out if bias is None else out + bias

    return _replace_forward(module, forward)


def serialise_embedding(module: nn.Module, factor: int) -> Undo:
    """Look up in `factor` pieces of the vocabulary. Raises PipeliningError if factor does not divide it."""
    if type(module) is not nn.Embedding or module.max_norm is not None:
        raise PipeliningError(
            f"embedding_serialization_factor {factor} needs a plain nn.Embedding, but the model's input embedding is a "
            f"{type(module).__name__}. Use embedding_serialization_factor=1."
        )
    embedding: nn.Embedding = module
    size = embedding.num_embeddings
    _check_divides(size, factor, "rows of the embedding", "embedding_serialization_factor")
    rows = size // factor

    def forward(indices: torch.Tensor) -> torch.Tensor:
        pieces = [
            _masked_lookup(indices, embedding.weight[i * rows : (i + 1) * rows], i * rows, embedding.padding_idx)
            for i in range(factor)
        ]
        return torch.stack(pieces).sum(0)

    return _replace_forward(embedding, forward)


def _masked_lookup(indices: torch.Tensor, piece: torch.Tensor, start: int, padding_idx: Any) -> torch.Tensor:
    local = indices - start
    here = (local >= 0) & (local < piece.shape[0])
    padding = None if padding_idx is None or not 0 <= padding_idx - start < piece.shape[0] else padding_idx - start
    found = nn.functional.embedding(torch.where(here, local, torch.zeros_like(local)), piece, padding)
    return found * here.unsqueeze(-1).to(found.dtype)


class SplitProjection(nn.Module):
    """A linear layer whose outputs are computed on several IPUs; pieces[i] is (rows of piece i, inputs)."""

    def __init__(self, weight: torch.Tensor, bias: Any, splits: Sequence[int], poptorch: Any) -> None:
        super().__init__()
        self.pieces, self._ipus = _pieces(weight, splits)
        self.bias = bias
        self._poptorch = poptorch

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        parts = []
        for number, (piece, ipu) in enumerate(zip(self.pieces, self._ipus)):
            self._poptorch.Block.start(f"projection piece {number}", ipu_id=ipu)
            parts.append(nn.functional.linear(states, piece))
        out = torch.cat(parts, dim=-1)
        return out if self.bias is None else out + self.bias


class SplitEmbedding(nn.Module):
    """An embedding whose rows lie on several IPUs; pieces[i] is (rows of piece i, width)."""

    def __init__(self, embedding: nn.Embedding, splits: Sequence[int], poptorch: Any) -> None:
        super().__init__()
        self.pieces, self._ipus = _pieces(embedding.weight, splits)
        self.padding_idx = embedding.padding_idx
        self._poptorch = poptorch

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        found, start = [], 0
        for number, (piece, ipu) in enumerate(zip(self.pieces, self._ipus)):
            self._poptorch.Block.start(f"embedding piece {number}", ipu_id=ipu)
            found.append(_masked_lookup(indices, piece, start, self.padding_idx))
            start += piece.shape[0]
        return torch.stack(found).sum(0)


def _pieces(weight: torch.Tensor, splits: Sequence[int]) -> Tuple[nn.ParameterList, Tuple[int, ...]]:
    rows = torch.chunk(weight.detach(), sum(splits), dim=0)
    pieces = nn.ParameterList([nn.Parameter(r.clone(), requires_grad=weight.requires_grad) for r in rows])
    return pieces, ipu_of_layer(splits)


def split_module(
    model: nn.Module, name: str, kind: str, splits: Sequence[int], poptorch: Any
) -> Tuple[Undo, Dict[int, List[nn.Parameter]]]:
    """Replace the module `name` by its split form. Returns what undoes it, and the pieces by id() of the whole weight.

    Raises PipeliningError for a weight that another module uses too, or whose rows cannot be divided.
    """
    module = model.get_submodule(name)
    weight = _matrix(module, kind)
    field = f"serialized_{kind}_splits_per_ipu"
    users = [n for n, p in model.named_parameters(remove_duplicate=False) if p is weight]
    if len(users) > 1:
        raise PipeliningError(
            f"{field} {list(splits)} spreads a weight over IPUs, but {' and '.join(users)} are one tied weight, which "
            f"lives on one IPU. Use {kind}_serialization_factor instead, or tie_word_embeddings=False."
        )
    _check_divides(weight.shape[0], sum(splits), f"rows of the {kind}", field)
    parent = model.get_submodule(name.rpartition(".")[0])
    split: Any
    if kind == "projection":
        split = SplitProjection(weight, getattr(module, "bias", None), splits, poptorch)
    else:
        split = SplitEmbedding(module, splits, poptorch)  # type: ignore[arg-type]  # _matrix saw an embedding
    setattr(parent, name.rpartition(".")[2], split)

    def undo() -> None:
        with torch.no_grad():
            weight.copy_(torch.cat([piece.detach() for piece in split.pieces]))
        setattr(parent, name.rpartition(".")[2], module)

    return undo, {id(weight): list(split.pieces)}


def merge_pieces(state: Dict[str, torch.Tensor], prefix: str) -> None:
    """Put `prefix`.pieces.0, .1, ... of a state dictionary together again as `prefix`.weight."""
    names = sorted((n for n in state if n.startswith(f"{prefix}.pieces.")), key=lambda n: int(n.rpartition(".")[2]))
    state[f"{prefix}.weight"] = torch.cat([state.pop(n) for n in names])


def _matrix(module: nn.Module, kind: str) -> nn.Parameter:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.dim() != 2:
        raise PipeliningError(
            f"the {kind} cannot be serialised: the model's is a {type(module).__name__} without a matrix `weight`. "
            f"Use {kind}_serialization_factor=1."
        )
    return weight


def _check_divides(size: int, pieces: int, what: str, field: str) -> None:
    if size % pieces:
        near = next(count for count in range(pieces, 0, -1) if size % count == 0)
        raise PipeliningError(
            f"{field} makes {pieces} pieces of the {size} {what}, which it must divide. Use {near}, or pad the "
            "vocabulary with model.resize_token_embeddings()."
        )


def _replace_forward(module: nn.Module, forward: Any) -> Undo:
    # On the instance: names and parameters of the module stay as they are.
    module.__dict__["forward"] = forward
    return functools.partial(module.__dict__.pop, "forward", None)
