"""Triton kernels of attention.py, bias_gelu.py and residual_norm.py; imported on GPUs only.

Block sizes are the fastest on an H100. Where it pays, rows run from the last to the first: what the GEMM before wrote last is still
in the cache, and the next GEMM begins with what is written last here. Floats are constexpr arguments: torch.compile would pass them
with 64 bits, and the kernel would compute in float64.
"""

from __future__ import annotations

from typing import Optional, Tuple

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

_KEYS = 64  # of a block in attention's backward pass
# One program sums the rows of one part; the parts are summed after it.
_ROWS_OF_GELU_PART, _ROWS_OF_NORM_PART = 256, 128
LOG2_E = tl.constexpr(1.4426950408889634)


def packed_attention_backward(
    gradient: torch.Tensor, packed: torch.Tensor, read: torch.Tensor, log_sums: torch.Tensor, scale: float
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Shapes as in attention.py; at most 256 tokens."""
    batch, tokens, _, heads, head_dim = packed.shape
    gradient, packed, read = gradient.contiguous(), packed.contiguous(), read.contiguous()
    result = torch.empty_like(packed)
    sums = torch.empty((batch, heads * head_dim), dtype=torch.float32, device=packed.device)
    over = tokens % _KEYS
    with torch.cuda.device(packed.device):
        wrap_triton(_attention_backward)[(batch * heads,)](
            packed, read, gradient, log_sums, result, sums, tokens, heads,
            SCALE=scale, QUERIES=256, KEYS=_KEYS, LAST_KEYS=max(16, triton.next_power_of_2(over)) if over else 0,
            HEAD_DIM=head_dim, WIDTH=heads * head_dim, num_warps=8,
        )  # fmt: skip
    return result, sums


@triton.jit
def _attention_backward(
    packed_pointer,
    read_pointer,
    gradient_pointer,
    log_sums_pointer,
    result_pointer,
    sums_pointer,
    tokens,
    heads,
    SCALE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    LAST_KEYS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One program per head and sample: it holds all queries and loops over blocks of keys and values, the last block small.

    Rows beyond the last token are loaded as zeros and add nothing: a missing query has gradient 0, a missing key is 0 in products
    with scores.
    """
    sample = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    within = tl.arange(0, HEAD_DIM)
    first = sample * tokens * 3 * WIDTH + head * HEAD_DIM
    queries = tl.arange(0, QUERIES)
    are_queries = queries[:, None] < tokens
    at_queries = first + queries[:, None] * 3 * WIDTH + within[None, :]
    at_read = sample * tokens * WIDTH + head * HEAD_DIM + queries[:, None] * WIDTH + within[None, :]
    at_sums = tl.program_id(0).to(tl.int64) * tokens + queries
    query = tl.load(packed_pointer + at_queries, mask=are_queries, other=0.0)
    gradient = tl.load(gradient_pointer + at_read, mask=are_queries, other=0.0)
    read = tl.load(read_pointer + at_read, mask=are_queries, other=0.0)
    log_sum = tl.load(log_sums_pointer + at_sums, mask=queries < tokens, other=0.0) * LOG2_E
    mean = tl.sum(gradient.to(tl.float32) * read.to(tl.float32), 1)
    grad_query = tl.zeros((QUERIES, HEAD_DIM), tl.float32)

    whole = tokens // KEYS * KEYS
    for begin in tl.range(0, whole, KEYS, num_stages=3):
        grad_query = _attention_backward_of_keys(
            packed_pointer, result_pointer, first, begin, tokens, query, gradient, mean, log_sum, grad_query,
            SCALE=SCALE, KEYS=KEYS, ALL=True, HEAD_DIM=HEAD_DIM, WIDTH=WIDTH,
        )  # fmt: skip
    if LAST_KEYS:
        grad_query = _attention_backward_of_keys(
            packed_pointer, result_pointer, first, whole, tokens, query, gradient, mean, log_sum, grad_query,
            SCALE=SCALE, KEYS=LAST_KEYS, ALL=False, HEAD_DIM=HEAD_DIM, WIDTH=WIDTH,
        )  # fmt: skip
    grad_query *= SCALE
    tl.store(result_pointer + at_queries, grad_query.to(query.dtype), mask=are_queries)
    tl.store(sums_pointer + sample * WIDTH + head * HEAD_DIM + within, tl.sum(grad_query, 0))


@triton.jit
def _attention_backward_of_keys(
    packed_pointer,
    result_pointer,
    first,
    begin,
    tokens,
    query,
    gradient,
    mean,
    log_sum,
    grad_query,
    SCALE: tl.constexpr,
    KEYS: tl.constexpr,
    ALL: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Stores the gradients of a block of keys and values; adds to the queries'. ALL: no key is beyond the last token."""
    keys = begin + tl.arange(0, KEYS)
    within = tl.arange(0, HEAD_DIM)
    at_keys = first + keys[:, None] * 3 * WIDTH + within[None, :]
    exist = None if ALL else keys[:, None] < tokens
    key = tl.load(packed_pointer + WIDTH + at_keys, mask=exist, other=None if ALL else 0.0)
    value = tl.load(packed_pointer + 2 * WIDTH + at_keys, mask=exist, other=None if ALL else 0.0)
    # Both products begin before either is needed.
    scores = tl.dot(query, tl.trans(key))
    grad_weights = tl.dot(gradient, tl.trans(value))
    weights = tl.exp2(scores * (SCALE * LOG2_E) - log_sum[:, None])
    grad_scores = (weights * (grad_weights - mean[:, None])).to(query.dtype)
    weights = weights.to(query.dtype)
    grad_query = tl.dot(grad_scores, key, grad_query)
    if KEYS >= 64:  # a product has at least 64 rows
        grad_value = tl.dot(tl.trans(weights), gradient)
        grad_key = tl.dot(tl.trans(grad_scores), query) * SCALE
    else:
        grad_value = tl.trans(tl.dot(tl.trans(gradient), weights))
        grad_key = tl.trans(tl.dot(tl.trans(query), grad_scores)) * SCALE
    tl.store(result_pointer + WIDTH + at_keys, grad_key.to(key.dtype), mask=exist)
    tl.store(result_pointer + 2 * WIDTH + at_keys, grad_value.to(key.dtype), mask=exist)
    return grad_query


def bias_gelu(product: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Shapes as in bias_gelu.py."""
    width = product.shape[-1]
    rows = product.numel() // width
    product = product.contiguous()
    result = torch.empty_like(product)
    tile_rows, columns = 8, 256
    with torch.cuda.device(product.device):
        wrap_triton(_bias_gelu)[(triton.cdiv(width, columns), triton.cdiv(rows, tile_rows))](
            product, bias, result, rows, width, ROWS=tile_rows, COLUMNS=columns, num_warps=4
        )
    return result


@triton.jit
def _bias_gelu(product_pointer, bias_pointer, result_pointer, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """One program: some columns of some rows; the last rows first."""
    row = (tl.num_programs(1) - 1 - tl.program_id(1)).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    at = row[:, None] * width + column[None, :]
    exists = (row[:, None] < rows) & (column[None, :] < width)
    bias = tl.load(bias_pointer + column, mask=column < width, other=0.0).to(tl.float32)
    hidden = tl.load(product_pointer + at, mask=exists, other=0.0).to(tl.float32) + bias[None, :]
    tail, _ = _tail_and_exponential(hidden)
    result = tl.maximum(hidden, 0.0) - tl.abs(hidden) * tail
    tl.store(result_pointer + at, result.to(result_pointer.dtype.element_ty), mask=exists)


@triton.jit
def _tail_and_exponential(hidden):
    """The standard normal distribution's probability beyond |hidden|, and exp(-hidden^2 / 2).

    Their quotient is a polynomial in 1 / (1 + 0.305 |hidden|), fitted to a relative error of 1e-7. With the library's
    erf the forward kernel took 0.03 ms of 0.25 longer.
    """
    exponential = tl.exp2(hidden * hidden * -0.7213475204444817)  # log2(e) / 2
    root = tl.rsqrt(1.0 + 0.305 * tl.abs(hidden))
    variable = root * root
    quotient = 0.03669875 * variable - 0.15298653
    quotient = quotient * variable + 0.18571395
    quotient = quotient * variable - 0.0379742
    quotient = quotient * variable + 0.12102033
    quotient = quotient * variable + 0.10342126
    quotient = quotient * variable + 0.12246676
    quotient = quotient * variable + 0.12163974
    return quotient * variable * exponential, exponential


def bias_gelu_backward(
    gradient: torch.Tensor, product: torch.Tensor, bias: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Shapes as in bias_gelu.py."""
    width = product.shape[-1]
    rows = product.numel() // width
    gradient, product = gradient.contiguous(), product.contiguous()
    parts = triton.cdiv(rows, _ROWS_OF_GELU_PART)
    result = torch.empty_like(product)
    sums = torch.empty((parts, width), dtype=torch.float32, device=product.device)
    columns = 128
    with torch.cuda.device(product.device):
        wrap_triton(_bias_gelu_backward)[(triton.cdiv(width, columns), parts)](
            gradient, product, bias, result, sums, rows, width,
            PART=_ROWS_OF_GELU_PART, ROWS=8, COLUMNS=columns, num_warps=8,
        )  # fmt: skip
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
    """One program: some columns of one part's rows, and their sum; the last part first."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    part = tl.num_programs(1) - 1 - tl.program_id(1)
    first = part.to(tl.int64) * PART
    inside = column < width
    bias = tl.load(bias_pointer + column, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for begin in range(0, PART, ROWS):
        row = first + PART - ROWS - begin + tl.arange(0, ROWS)
        at = row[:, None] * width + column[None, :]
        exists = (row[:, None] < rows) & inside[None, :]
        hidden = tl.load(product_pointer + at, mask=exists, other=0.0).to(tl.float32) + bias[None, :]
        gradient = tl.load(gradient_pointer + at, mask=exists, other=0.0).to(tl.float32)
        tail, exponential = _tail_and_exponential(hidden)
        share = tl.where(hidden > 0, 1.0 - tail, tail)
        grad_hidden = gradient * (share + hidden * exponential * 0.3989422804014327)  # 1/sqrt(2 pi)
        tl.store(result_pointer + at, grad_hidden.to(result_pointer.dtype.element_ty), mask=exists)
        total += grad_hidden
    tl.store(sums_pointer + part * width + column, tl.sum(total, 0), mask=inside)


def residual_norm(
    residual: torch.Tensor,
    product: torch.Tensor,
    bias: torch.Tensor,
    weight: torch.Tensor,
    norm_bias: torch.Tensor,
    epsilon: float,
    drop_mask: Optional[torch.Tensor],
    norm_before_drop: bool,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Shapes as in residual_norm.py; rows of at most 1,024 numbers."""
    tokens, width = residual.shape[-2:]
    residual, product = residual.contiguous(), product.contiguous()
    total, normalised = torch.empty_like(residual), torch.empty_like(product)
    mean = torch.empty(residual.shape[:-1], dtype=torch.float32, device=residual.device)
    scale = torch.empty_like(mean)
    with torch.cuda.device(residual.device):
        wrap_triton(_residual_norm)[(mean.numel(),)](
            residual, product, bias, weight, norm_bias, drop_mask, total, normalised, mean, scale, tokens, width,
            EPSILON=epsilon, NORM_BEFORE_DROP=norm_before_drop, COLUMNS=triton.next_power_of_2(width), num_warps=4,
        )  # fmt: skip
    return total, normalised, mean, scale


@triton.jit
def _residual_norm(
    residual_pointer,
    product_pointer,
    bias_pointer,
    weight_pointer,
    norm_bias_pointer,
    drop_mask_pointer,
    total_pointer,
    normalised_pointer,
    mean_pointer,
    scale_pointer,
    tokens,
    width,
    EPSILON: tl.constexpr,
    NORM_BEFORE_DROP: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program, one row, the last one first."""
    row = (tl.num_programs(0) - 1 - tl.program_id(0)).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    inside = column < width
    at = row * width + column
    change = tl.load(product_pointer + at, mask=inside, other=0.0).to(tl.float32)
    change += tl.load(bias_pointer + column, mask=inside, other=0.0).to(tl.float32)
    counted = change
    if drop_mask_pointer is not None:
        counted = change * tl.load(drop_mask_pointer + row // tokens).to(tl.float32)
    total = tl.load(residual_pointer + at, mask=inside, other=0.0).to(tl.float32) + counted
    stored = total.to(total_pointer.dtype.element_ty)
    tl.store(total_pointer + at, stored, mask=inside)
    read = stored.to(tl.float32)
    if NORM_BEFORE_DROP:
        read += change - counted
    mean = tl.sum(read, 0) / width
    centred = tl.where(inside, read - mean, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 0) / width + EPSILON)
    weight = tl.load(weight_pointer + column, mask=inside, other=0.0).to(tl.float32)
    norm_bias = tl.load(norm_bias_pointer + column, mask=inside, other=0.0).to(tl.float32)
    normalised = centred * scale * weight + norm_bias
    tl.store(normalised_pointer + at, normalised.to(normalised_pointer.dtype.element_ty), mask=inside)
    tl.store(mean_pointer + row, mean)
    tl.store(scale_pointer + row, scale)


def residual_norm_backward(
    grad_total: torch.Tensor,
    grad_normalised: torch.Tensor,
    total: torch.Tensor,
    mean: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    drop_mask: Optional[torch.Tensor],
    product: Optional[torch.Tensor],
    bias: Optional[torch.Tensor],
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Shapes as in residual_norm.py."""
    tokens, width = total.shape[-2:]
    grad_total, grad_normalised = grad_total.contiguous(), grad_normalised.contiguous()
    product = None if product is None else product.contiguous()
    grad_residual, grad_product = torch.empty_like(total), torch.empty_like(grad_normalised)
    rows = mean.numel()
    parts = triton.cdiv(rows, _ROWS_OF_NORM_PART)
    sums = torch.empty((parts, 3, width), dtype=torch.float32, device=total.device)
    with torch.cuda.device(total.device):
        wrap_triton(_residual_norm_backward)[(parts,)](
            grad_total, grad_normalised, total, mean, scale, weight, drop_mask, product, bias, grad_residual, grad_product, sums,
            rows, tokens, width, PART=_ROWS_OF_NORM_PART, COLUMNS=triton.next_power_of_2(width), num_warps=4,
        )  # fmt: skip
    return grad_residual, grad_product, sums


@triton.jit
def _residual_norm_backward(
    grad_total_pointer,
    grad_normalised_pointer,
    total_pointer,
    mean_pointer,
    scale_pointer,
    weight_pointer,
    drop_mask_pointer,
    product_pointer,
    bias_pointer,
    grad_residual_pointer,
    grad_product_pointer,
    sums_pointer,
    rows,
    tokens,
    width,
    PART: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program: a part's rows, one after the other, and their three sums."""
    column = tl.arange(0, COLUMNS)
    inside = column < width
    weight = tl.load(weight_pointer + column, mask=inside, other=0.0).to(tl.float32)
    if product_pointer is not None:
        bias = tl.load(bias_pointer + column, mask=inside, other=0.0).to(tl.float32)
    first = tl.program_id(0).to(tl.int64) * PART
    grad_bias = tl.zeros((COLUMNS,), tl.float32)
    grad_weight = tl.zeros((COLUMNS,), tl.float32)
    grad_norm_bias = tl.zeros((COLUMNS,), tl.float32)
    for offset in tl.range(0, PART, num_stages=3):
        row = first + offset
        at = row * width + column
        exists = inside & (row < rows)
        read = tl.load(total_pointer + at, mask=exists, other=0.0).to(tl.float32)
        given = tl.load(grad_normalised_pointer + at, mask=exists, other=0.0).to(tl.float32)
        grad_total = tl.load(grad_total_pointer + at, mask=exists, other=0.0).to(tl.float32)
        mean = tl.load(mean_pointer + row, mask=row < rows, other=0.0)
        scale = tl.load(scale_pointer + row, mask=row < rows, other=0.0)
        drop_mask = 1.0
        if drop_mask_pointer is not None:
            drop_mask = tl.load(drop_mask_pointer + row // tokens, mask=row < rows, other=0.0).to(tl.float32)
        if product_pointer is not None:
            product = tl.load(product_pointer + at, mask=exists, other=0.0).to(tl.float32)
            read += (1.0 - drop_mask) * (product + bias)
        standard = (read - mean) * scale
        weighted = given * weight
        along = tl.sum(weighted * standard, 0) / width
        grad_read = (weighted - tl.sum(weighted, 0) / width - standard * along) * scale
        if product_pointer is None:
            grad_product = drop_mask * (grad_total + grad_read)
        else:
            grad_product = drop_mask * grad_total + grad_read
        grad_residual = (grad_total + grad_read).to(grad_residual_pointer.dtype.element_ty)
        tl.store(grad_residual_pointer + at, grad_residual, mask=exists)
        tl.store(grad_product_pointer + at, grad_product.to(grad_product_pointer.dtype.element_ty), mask=exists)
        grad_bias += grad_product  # 0 in rows beyond the last: their scale is 0
        grad_weight += given * standard
        grad_norm_bias += given
    to = sums_pointer + tl.program_id(0).to(tl.int64) * 3 * width + column
    tl.store(to, grad_bias, mask=inside)
    tl.store(to + width, grad_weight, mask=inside)
    tl.store(to + 2 * width, grad_norm_bias, mask=inside)
