"""The Triton kernels of the fused attention: forward with an online softmax, backward by recomputing the weights.

They have run under Triton's interpreter and been compiled for Hopper and Ampere; on a GPU they have never run.

Everywhere: rows are queries, columns are keys. Programs are numbered (block of rows or columns, image, slab), a slab
being a part of the head dimension: a head of 1024 fits neither registers nor shared memory in one piece. Products over
a head run in chunks of it. Sums, logits and softmax are float32. What is saved of the softmax is the maximum of each
row's logits and log2 of its sum, apart: added up, large logits would swallow the sum's digits.
"""
# Kernels are Triton's language, not Python: its annotations are its own.
# mypy: ignore-errors

import triton
import triton.language as tl

# Decided by TRITON_INTERPRET when kernels are decorated, below. The interpreter multiplies bfloat16 as if they were
# whole numbers: it is given the same values as float32.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def _dot(left, right, total):
    """total + left @ right, float32 sums of products that are exact ("ieee": no TensorFloat-32)."""
    if INTERPRETED:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, total, input_precision="ieee")


@triton.jit
def _rounded(values, dtype: tl.constexpr):
    """float32 values in another dtype, to nearest as GPUs do it; the interpreter cuts bfloat16 off."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = values.to(tl.int32, bitcast=True)
        values = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
    return values.to(dtype)


@triton.jit
def _tile(start, rows, stride, end, first, D: tl.constexpr, WIDTH: tl.constexpr):
    """Elements [rows, first : first + WIDTH] of a matrix with D columns; zeros outside."""
    columns = first + tl.arange(0, WIDTH)
    inside = (rows[:, None] < end) & (columns[None, :] < D)
    return tl.load(start + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _put(start, tile, rows, stride, end, first, D: tl.constexpr, WIDTH: tl.constexpr):
    """Store what `_tile` would load."""
    columns = first + tl.arange(0, WIDTH)
    inside = (rows[:, None] < end) & (columns[None, :] < D)
    tl.store(start + rows[:, None] * stride + columns[None, :], _rounded(tile, start.dtype.element_ty), mask=inside)


@triton.jit
def _products(
    a, a_rows, a_stride, a_end, b, b_rows, b_stride, b_end,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """a @ b.T of some rows of each, [ROWS, COLUMNS] float32, over a head of D in chunks."""
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, D, CHUNK):
        left = _tile(a, a_rows, a_stride, a_end, first, D, CHUNK)
        right = _tile(b, b_rows, b_stride, b_end, first, D, CHUNK)
        total = _dot(left, tl.trans(right), total)
    return total


@triton.jit
def _weighted(weights, value, total, SPLIT: tl.constexpr):
    """total + weights @ value.

    bfloat16 weights would cost as much as rounding the output does, and both together pass the bound of 2e-3: SPLIT
    multiplies what rounding lost too.
    """
    high = _rounded(weights, value.dtype)
    total = _dot(high, value, total)
    if SPLIT:
        low = _rounded(weights - high.to(tl.float32), value.dtype)
        total = _dot(low, value, total)
    return total


@triton.jit
def _keep(
    result, out, residual, rows, stride, end, first,
    D: tl.constexpr, WIDTH: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Store float32 results in the output's dtype, and what that rounding lost where it is asked for."""
    _put(out, result, rows, stride, end, first, D, WIDTH)
    if RESIDUAL:
        _put(
            residual, result - _rounded(result, out.dtype.element_ty).to(tl.float32), rows, stride, end, first, D, WIDTH
        )


@triton.jit
def forward_online(
    query, key, value, out, residual, peaks, log_sums,
    query_batch, query_row, key_batch, key_row, value_batch, value_row,
    queries, keys, log2_scale,
    D_K: tl.constexpr, D_V: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr, SLAB: tl.constexpr, SPLIT: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """A block of rows and a slab of values, keys passing by block by block; grid (row blocks, images, slabs of D_V)."""
    image, slab = tl.program_id(1).to(tl.int64), tl.program_id(2)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    query += image * query_batch
    key += image * key_batch
    value += image * value_batch
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    weight_sum = tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS, SLAB], tl.float32)
    for begin in range(0, keys, COLUMNS):
        columns = begin + tl.arange(0, COLUMNS)
        logits = _products(query, rows, query_row, queries, key, columns, key_row, keys, ROWS, COLUMNS, D_K, CHUNK)
        logits = tl.where(columns[None, :] < keys, logits, float("-inf"))
        higher = tl.maximum(peak, tl.max(logits, 1))
        # The difference first: scaled before, large logits would lose its digits.
        weights = tl.exp2((logits - higher[:, None]) * log2_scale)
        shrink = tl.exp2((peak - higher) * log2_scale)
        weight_sum = weight_sum * shrink + tl.sum(weights, 1)
        part = _tile(value, columns, value_row, keys, slab * SLAB, D_V, SLAB)
        total = _weighted(weights, part, total * shrink[:, None], SPLIT)
        peak = higher
    at = image * queries
    _keep(total / weight_sum[:, None], out + at * D_V, residual + at * D_V, rows, D_V, queries, slab * SLAB,
          D_V, SLAB, RESIDUAL)  # fmt: skip
    if slab == 0:
        tl.store(peaks + at + rows, peak, mask=rows < queries)
        tl.store(log_sums + at + rows, tl.log2(weight_sum), mask=rows < queries)


@triton.jit
def forward_whole(
    query, key, value, out, residual, peaks, log_sums,
    query_batch, query_row, key_batch, key_row, value_batch, value_row,
    queries, keys, log2_scale,
    D_K: tl.constexpr, D_V: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr, SLAB: tl.constexpr, SPLIT: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """A block of rows where one block holds all keys: one softmax, then slab by slab; grid (row blocks, images)."""
    image = tl.program_id(1).to(tl.int64)
    rows, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    query += image * query_batch
    key += image * key_batch
    value += image * value_batch
    logits = _products(query, rows, query_row, queries, key, columns, key_row, keys, ROWS, COLUMNS, D_K, CHUNK)
    logits = tl.where(columns[None, :] < keys, logits, float("-inf"))
    peak = tl.max(logits, 1)
    weights = tl.exp2((logits - peak[:, None]) * log2_scale)
    weight_sum = tl.sum(weights, 1)
    at = image * queries
    for first in range(0, D_V, SLAB):
        part = _tile(value, columns, value_row, keys, first, D_V, SLAB)
        total = _weighted(weights, part, tl.zeros([ROWS, SLAB], tl.float32), SPLIT)
        _keep(total / weight_sum[:, None], out + at * D_V, residual + at * D_V, rows, D_V, queries, first,
              D_V, SLAB, RESIDUAL)  # fmt: skip
    tl.store(peaks + at + rows, peak, mask=rows < queries)
    tl.store(log_sums + at + rows, tl.log2(weight_sum), mask=rows < queries)


@triton.jit
def output_slopes(
    slope, out, residual, deltas, slope_batch, slope_row, queries,
    D_V: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """delta = sum over the head of slope * output, as it was before rounding; grid (row blocks, images).

    Where the softmax is nearly one-hot, gradients are small differences to delta: a rounded output would drown them.
    """
    image = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    slope += image * slope_batch
    at = image * queries * D_V
    total = tl.zeros([ROWS], tl.float32)
    for first in range(0, D_V, CHUNK):
        result = _tile(out + at, rows, D_V, queries, first, D_V, CHUNK).to(tl.float32)
        if RESIDUAL:
            result += _tile(residual + at, rows, D_V, queries, first, D_V, CHUNK).to(tl.float32)
        total += tl.sum(_tile(slope, rows, slope_row, queries, first, D_V, CHUNK).to(tl.float32) * result, 1)
    tl.store(deltas + image * queries + rows, total, mask=rows < queries)


@triton.jit
def _weights_and_slopes(
    query, key, value, slope, peaks, log_sums, deltas,
    query_row, key_row, value_row, slope_row, rows, columns, queries, keys, scale, log2_scale,
    D_K: tl.constexpr, D_V: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Attention weights of a block, and the slopes of the loss by its products q·k, both [ROWS, COLUMNS] float32."""
    logits = _products(query, rows, query_row, queries, key, columns, key_row, keys, ROWS, COLUMNS, D_K, CHUNK)
    peak = tl.load(peaks + rows, mask=rows < queries, other=0.0)
    log_sum = tl.load(log_sums + rows, mask=rows < queries, other=0.0)
    delta = tl.load(deltas + rows, mask=rows < queries, other=0.0)
    inside = (rows[:, None] < queries) & (columns[None, :] < keys)
    weights = tl.where(inside, tl.exp2((logits - peak[:, None]) * log2_scale - log_sum[:, None]), 0.0)
    slopes = _products(slope, rows, slope_row, queries, value, columns, value_row, keys, ROWS, COLUMNS, D_V, CHUNK)
    return weights, weights * (slopes - delta[:, None]) * scale


@triton.jit
def backward_keys(
    query, key, value, slope, peaks, log_sums, deltas, key_slope, value_slope,
    query_batch, query_row, key_batch, key_row, value_batch, value_row, slope_batch, slope_row,
    key_slope_batch, key_slope_row, value_slope_batch, value_slope_row,
    queries, keys, scale, log2_scale,
    D_K: tl.constexpr, D_V: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr, SLAB: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of keys and values, queries passing by; grid (key blocks, images, slabs of either head)."""
    image, slab = tl.program_id(1).to(tl.int64), tl.program_id(2)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    query += image * query_batch
    key += image * key_batch
    value += image * value_batch
    slope += image * slope_batch
    at = image * queries
    first = slab * SLAB
    key_total = tl.zeros([COLUMNS, SLAB], tl.float32)
    value_total = tl.zeros([COLUMNS, SLAB], tl.float32)
    for begin in range(0, queries, ROWS):
        rows = begin + tl.arange(0, ROWS)
        weights, slopes = _weights_and_slopes(
            query, key, value, slope, peaks + at, log_sums + at, deltas + at,
            query_row, key_row, value_row, slope_row, rows, columns, queries, keys, scale, log2_scale,
            D_K, D_V, ROWS, COLUMNS, CHUNK)  # fmt: skip
        part = _tile(slope, rows, slope_row, queries, first, D_V, SLAB)
        value_total = _dot(tl.trans(_rounded(weights, part.dtype)), part, value_total)
        part = _tile(query, rows, query_row, queries, first, D_K, SLAB)
        key_total = _dot(tl.trans(_rounded(slopes, part.dtype)), part, key_total)
    _put(value_slope + image * value_slope_batch, value_total, columns, value_slope_row, keys, first, D_V, SLAB)
    _put(key_slope + image * key_slope_batch, key_total, columns, key_slope_row, keys, first, D_K, SLAB)


@triton.jit
def backward_queries(
    query, key, value, slope, peaks, log_sums, deltas, query_slope,
    query_batch, query_row, key_batch, key_row, value_batch, value_row, slope_batch, slope_row,
    query_slope_batch, query_slope_row,
    queries, keys, scale, log2_scale,
    D_K: tl.constexpr, D_V: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr, SLAB: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of queries, keys passing by; grid (row blocks, images, slabs of D_K)."""
    image, slab = tl.program_id(1).to(tl.int64), tl.program_id(2)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    query += image * query_batch
    key += image * key_batch
    value += image * value_batch
    slope += image * slope_batch
    at = image * queries
    first = slab * SLAB
    total = tl.zeros([ROWS, SLAB], tl.float32)
    for begin in range(0, keys, COLUMNS):
        columns = begin + tl.arange(0, COLUMNS)
        _, slopes = _weights_and_slopes(
            query, key, value, slope, peaks + at, log_sums + at, deltas + at,
            query_row, key_row, value_row, slope_row, rows, columns, queries, keys, scale, log2_scale,
            D_K, D_V, ROWS, COLUMNS, CHUNK)  # fmt: skip
        part = _tile(key, columns, key_row, keys, first, D_K, SLAB)
        total = _dot(_rounded(slopes, part.dtype), part, total)
    _put(query_slope + image * query_slope_batch, total, rows, query_slope_row, queries, first, D_K, SLAB)
