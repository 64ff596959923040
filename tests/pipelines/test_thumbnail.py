"""Thumbnails: what is written once works alike on nodes of a graph and on arrays of a batch, and as numpy says."""

from __future__ import annotations

from collections.abc import Callable

import locate_numpy
import numpy as np
import pytest
from nvidia.dali import fn
from run_graph import run_graph

from pipelines import thumbnail as t

SIDE = 12


def masks() -> np.ndarray:
    """[N, SIDE, SIDE] random ones of every density, none, all, and a pixel in each corner alone."""
    random = np.random.default_rng(0)
    drawn = [random.random((SIDE, SIDE)) < share for share in (0.02, 0.1, 0.3, 0.6, 0.9, 0.98)]
    single = [np.zeros((SIDE, SIDE), bool) for _ in range(4)]
    for mask, (y, x) in zip(single, ((0, 0), (0, -1), (-1, 0), (-1, -1)), strict=True):
        mask[y, x] = True
    whole = [np.zeros((SIDE, SIDE), bool), np.ones((SIDE, SIDE), bool)]
    return np.stack([*drawn, *single, *whole]).astype(np.uint8)


def greys() -> np.ndarray:
    """[N, SIDE, SIDE] uint8, one for each mask."""
    return np.random.default_rng(1).integers(0, 256, masks().shape, dtype=np.uint8)


def both(function: Callable[..., object], *columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[N, numbers] of one value by nodes and by arrays, of images and scalars ([N] columns)."""

    def node(*values: object) -> object:
        made = function(
            *(fn.reshape(x, layout="HW") if c.ndim == 3 else x for x, c in zip(values, columns, strict=True))
        )
        return fn.reshape(made, shape=[-1])

    (by_nodes,) = run_graph(lambda *values: (node(*values),), *([*column] for column in columns))
    arrays = function(*(column if column.ndim == 3 else column.reshape(-1, 1, 1) for column in columns))
    count = len(columns[0])
    return np.stack(by_nodes).astype(float), np.broadcast_to(arrays, (count, *arrays.shape[1:])).reshape(
        count, -1
    ).astype(float)


def check(function: Callable[..., object], expected: np.ndarray, *columns: np.ndarray) -> None:
    by_nodes, by_arrays = both(function, *columns)
    wanted = np.asarray(expected, float).reshape(len(columns[0]), -1)
    assert np.allclose(by_nodes, wanted, atol=1e-4)
    assert np.allclose(by_arrays, wanted, atol=1e-4)


@pytest.mark.parametrize(("rows", "columns"), [(3, 3), (5, 5), (13, 1), (1, 13), (1, 1), (7, 5), (11, 3)])
def test_window_sums(rows: int, columns: int) -> None:
    padded = np.pad(masks(), ((0, 0), (rows // 2,) * 2, (columns // 2,) * 2)).astype(int)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (rows, columns), axis=(1, 2))
    check(lambda mask: t.window_sum(mask, rows, columns), windows.sum((3, 4)), masks())


def test_openings() -> None:
    for function, reference in ((t.eroded, locate_numpy.eroded), (t.dilated, locate_numpy.dilated),
                                (t.opened, locate_numpy.opened)):  # fmt: skip
        check(function, np.stack([reference(mask > 0) for mask in masks()]), masks())


@pytest.mark.parametrize("level", [-3.0, -0.5, 0.0, 0.25, 100.0, 100.5, 254.9, 255.0, 255.5, 300.0])
def test_comparisons_with_a_level(level: float) -> None:
    x = greys()
    x[:, 0, :4] = (0, 100, 101, 255)
    levels = np.full(len(x), level, np.float32)
    levels[::2] = 100.0  # and others beside it that are as usual
    column = levels.reshape(-1, 1, 1)
    check(lambda x, level: t.as_mask(t.over(x, level)), x > column, x, levels)
    check(lambda x, level: t.as_mask(t.below(x, level)), x < column, x, levels)
    check(lambda x, level: t.as_mask(t.at_least(x, level)), x >= column, x, levels)


@pytest.mark.parametrize("held", [1, 2, 4])
def test_extents(held: int) -> None:
    boxes = [locate_numpy.box_of(mask, held) for mask in masks()]
    check(lambda mask: t.extent(mask, SIDE, held), np.array(boxes), masks())


@pytest.mark.parametrize("axis", [0, 1])
def test_first_and_end(axis: int) -> None:
    lines = masks() if axis else masks().transpose(0, 2, 1)
    spans = np.array([[locate_numpy.span(line) for line in mask] for mask in lines])
    for which in (0, 1):
        check(lambda mask, which=which: t.first_and_end(mask, SIDE, axis)[which], spans[:, :, which], masks())


def test_within_also_where_nothing_is() -> None:
    places = np.arange(SIDE)
    for first, last in ((3, 5), (0, 11), (-2, 4), (9, 14), (5, 5), (6, 5), (12, -1), (3, -4), (70, 80)):
        inside = (places >= first) & (places <= last)
        ends = [np.full(1, edge, np.float32) for edge in (first, last)]
        for axis in (0, 1):
            check(lambda a, b, axis=axis: t.as_mask(t.within(a, b, SIDE, axis)), inside[None], *ends)


def test_what_tissue_encloses() -> None:
    expected = np.stack([locate_numpy.enclosed(mask > 0) for mask in masks()])
    check(lambda mask: t.enclosed(mask, SIDE), expected, masks())


def test_totals_and_means() -> None:
    x, mask = greys(), masks()
    check(t.total, x.astype(int).sum((1, 2)), x)
    check(t.mean_within, np.array([locate_numpy.mean(a[m > 0]) for a, m in zip(x, mask, strict=True)]), x, mask)


def test_levels_between_two_classes() -> None:
    x, mask = (greys() ** 2.0 / 255).astype(np.uint8), masks()
    expected = [locate_numpy.two_class_level(a.ravel().astype(float)) for a in x]
    check(lambda x: t.two_class_level(x, side=SIDE), np.array(expected), x)
    expected = [locate_numpy.two_class_level(a[m > 0].astype(float)) for a, m in zip(x, mask, strict=True)]
    check(lambda x, m: t.two_class_level(x, m, side=SIDE), np.array(expected), x, mask)


def test_corners_with_fewer() -> None:
    mask, size = masks(), 4
    tops = np.minimum(mask[:, :size, :size].sum((1, 2)), mask[:, :size, -size:].sum((1, 2)))
    bottoms = np.minimum(mask[:, -size:, :size].sum((1, 2)), mask[:, -size:, -size:].sum((1, 2)))
    for which, expected in enumerate((tops, bottoms)):
        check(lambda mask, which=which: t.fewer_in_corners(mask, SIDE, size)[which], expected, mask)


def test_windows_that_vary() -> None:
    random = np.random.default_rng(2)
    maps = np.kron(random.integers(0, 6, (5, 3, 3)), np.ones((4, 4), int)).astype(np.uint8)
    check(lambda q: t.as_mask(t.varies(q)), np.stack([locate_numpy.boundary(q) for q in maps]), maps)


def test_inversion_and_choice() -> None:
    x, flags = greys(), np.arange(len(greys()), dtype=np.uint8) % 2
    where = flags.reshape(-1, 1, 1) > 0
    check(t.inverted_where, np.where(where, 255 - x.astype(int), x), x, flags)
    check(lambda flag: t.chosen(flag, 7.0, -2.5), np.where(where, 7.0, -2.5), flags)
