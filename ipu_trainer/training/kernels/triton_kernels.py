"""The Triton side of attention.py and bias_gelu.py; imported on a GPU alone.

Blocks of the two backward kernels are those that an H100 was fastest with; those of the forward one were not tuned.
"""

from __future__ import annotations

from typing import Tuple

import torch
import triton
import triton.language as tl

from ipu_trainer.training.kernels.rounding import ROWS_OF_PART

_TILE_ROWS, _TILE_COLUMNS = 16, 256
LOG2_E = tl.constexpr(1.4426950408889634)


def packed_attention_backward(
    gradient: torch.Tensor, packed: torch.Tensor, read: torch.Tensor, log_sums: torch.Tensor, scale: float
) -> torch.Tensor:
    """Shapes as in attention.py; at most 256 tokens."""
    batch, tokens, _, heads, head_dim = packed.shape
    gradient, packed, read = gradient.contiguous(), packed.contiguous(), read.contiguous()
    result = torch.empty_like(packed)
    with torch.cuda.device(packed.device):
        _attention_backward[(batch * heads,)](
            packed, read, gradient, log_sums, result, tokens, heads, scale,
            QUERIES=32, KEYS=256, HEAD_DIM=head_dim, WIDTH=heads * head_dim, num_warps=8,
        )  # fmt: skip
    return result


@triton.jit
def _attention_backward(
    packed_pointer,
    read_pointer,
    gradient_pointer,
    log_sums_pointer,
    result_pointer,
    tokens,
    heads,
    scale,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One program, one head of one sample: all keys stay, queries come in blocks. Scores lie transposed, (keys, queries).

    Rows beyond the last token are zeros when loaded, so they add nothing to what is stored: a missing query has gradient 0,
    a missing key is 0 where scores meet keys.
    """
    sample = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    row = 3 * WIDTH
    first = sample * tokens * row + head * HEAD_DIM
    first_read = sample * tokens * WIDTH + head * HEAD_DIM
    first_sum = tl.program_id(0).to(tl.int64) * tokens
    within = tl.arange(0, HEAD_DIM)

    keys = tl.arange(0, KEYS)
    at_keys = first + keys[:, None] * row + within[None, :]
    are_keys = keys[:, None] < tokens
    key = tl.load(packed_pointer + WIDTH + at_keys, mask=are_keys, other=0.0)
    value = tl.load(packed_pointer + 2 * WIDTH + at_keys, mask=are_keys, other=0.0)
    of_key = tl.zeros((KEYS, HEAD_DIM), tl.float32)
    of_value = tl.zeros((KEYS, HEAD_DIM), tl.float32)

    for begin in tl.range(0, tokens, QUERIES, num_stages=3):
        queries = begin + tl.arange(0, QUERIES)
        are_queries = queries[:, None] < tokens
        at_read = first_read + queries[:, None] * WIDTH + within[None, :]
        query = tl.load(packed_pointer + first + queries[:, None] * row + within[None, :], mask=are_queries, other=0.0)
        gradient = tl.load(gradient_pointer + at_read, mask=are_queries, other=0.0)
        read = tl.load(read_pointer + at_read, mask=are_queries, other=0.0)
        log_sum = tl.load(log_sums_pointer + first_sum + queries, mask=queries < tokens, other=0.0)

        # Both products begin before either is needed.
        scores = tl.dot(key, tl.trans(query))
        of_weights = tl.dot(value, tl.trans(gradient))
        mean = tl.sum(gradient.to(tl.float32) * read.to(tl.float32), 1)
        weights = tl.exp2(scores * (scale * LOG2_E) - (log_sum * LOG2_E)[None, :])
        of_scores = (weights * (of_weights - mean[None, :])).to(query.dtype)
        of_value = tl.dot(weights.to(gradient.dtype), gradient, of_value)
        of_key = tl.dot(of_scores, query, of_key)
        of_query = tl.dot(tl.trans(key), of_scores) * scale  # (head_dim, queries)
        at_transposed = first + queries[None, :] * row + within[:, None]
        tl.store(result_pointer + at_transposed, of_query.to(query.dtype), mask=queries[None, :] < tokens)

    tl.store(result_pointer + WIDTH + at_keys, (of_key * scale).to(key.dtype), mask=are_keys)
    tl.store(result_pointer + 2 * WIDTH + at_keys, of_value.to(key.dtype), mask=are_keys)


def bias_gelu(product: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Shapes as in bias_gelu.py."""
    width = product.shape[-1]
    rows = product.numel() // width
    product = product.contiguous()
    result = torch.empty_like(product)
    with torch.cuda.device(product.device):
        _bias_gelu[(triton.cdiv(rows, _TILE_ROWS), triton.cdiv(width, _TILE_COLUMNS))](
            product, bias, result, rows, width, ROWS=_TILE_ROWS, COLUMNS=_TILE_COLUMNS, num_warps=4
        )
    return result


@triton.jit
def _bias_gelu(product_pointer, bias_pointer, result_pointer, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at = row[:, None] * width + column[None, :]
    exists = (row[:, None] < rows) & (column[None, :] < width)
    bias = tl.load(bias_pointer + column, mask=column < width, other=0.0).to(tl.float32)
    hidden = tl.load(product_pointer + at, mask=exists, other=0.0).to(tl.float32) + bias[None, :]
    result = hidden * 0.5 * (1 + tl.erf(hidden * 0.7071067811865476))  # sqrt(1/2)
    tl.store(result_pointer + at, result.to(result_pointer.dtype.element_ty), mask=exists)


def bias_gelu_backward(
    gradient: torch.Tensor, product: torch.Tensor, bias: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Shapes as in bias_gelu.py."""
    width = product.shape[-1]
    rows = product.numel() // width
    gradient, product = gradient.contiguous(), product.contiguous()
    parts = triton.cdiv(rows, ROWS_OF_PART)
    result = torch.empty_like(product)
    sums = torch.empty((parts, width), dtype=torch.float32, device=product.device)
    columns = 128
    with torch.cuda.device(product.device):
        _bias_gelu_backward[(triton.cdiv(width, columns), parts)](
            gradient, product, bias, result, sums, rows, width, PART=ROWS_OF_PART, ROWS=8, COLUMNS=columns, num_warps=8
        )
    return result, sums


@triton.jit
def _bias_gelu_backward(
    gradient_pointer,
    product_pointer,
    bias_pointer,
    result_pointer,
    sums_pointer,
    rows,
    width,
    PART: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program: some columns of one part's rows, and their sum."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    first = tl.program_id(1).to(tl.int64) * PART
    inside = column < width
    bias = tl.load(bias_pointer + column, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for begin in range(0, PART, ROWS):
        row = first + begin + tl.arange(0, ROWS)
        at = row[:, None] * width + column[None, :]
        exists = (row[:, None] < rows) & inside[None, :]
        hidden = tl.load(product_pointer + at, mask=exists, other=0.0).to(tl.float32) + bias[None, :]
        gradient = tl.load(gradient_pointer + at, mask=exists, other=0.0).to(tl.float32)
        share = 0.5 * (1 + tl.erf(hidden * 0.7071067811865476))  # sqrt(1/2)
        density = tl.exp(-0.5 * hidden * hidden) * 0.3989422804014327  # 1/sqrt(2 pi)
        of_hidden = gradient * (share + hidden * density)
        tl.store(result_pointer + at, of_hidden.to(result_pointer.dtype.element_ty), mask=exists)
        total += of_hidden
    tl.store(sums_pointer + tl.program_id(1) * width + column, tl.sum(total, 0), mask=inside)
