"""What it costs to make an array lie otherwise on its region, and the cuts worth trying. See `wsc.layout`."""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from wsc.layout import Grid, Layout, strides, whole
from wsc.lowering.strategy import Strategy
from wsc.machine import collectives
from wsc.machine.collectives import Costs
from wsc.machine.kernels import wavelets
from wsc.machine.steps import AllReduce, Multicast, Shift, Step
from wsc.machine.wafer import Wafer


def cut(n: int, pes: int) -> int:
    """Parts of a dimension of `n` over at most `pes` PEs, none of them empty.

    >>> cut(576, 100)       # tiles of 6
    96
    """
    return -(-n // -(-n // max(1, min(n, pes)))) if n else 1


def nest(shape: tuple[int, ...], pes: int) -> tuple[int, ...]:
    """Parts of several dimensions nested along one axis, the first outermost.

    >>> nest((8, 128), 150)
    (8, 16)
    """
    parts = []
    for n in shape:
        p = cut(n, pes)
        parts.append(p)
        pes = pes // p if p == n else 1
    return tuple(parts)


def fill(parts: tuple[int, ...], sizes: tuple[int, ...], pes: int) -> tuple[int, ...]:
    """`parts` of nested dimensions, where PEs that are left over share what the innermost cut ones have left.

    >>> fill((8, 1, 4), (8, 4, 128), 170)
    (8, 1, 19)
    """
    found = list(parts)
    last = max((d for d, p in enumerate(parts) if p > 1), default=0)
    for d in range(last, len(found)):
        found[d] = cut(sizes[d], found[d] * (pes // math.prod(found)))
    return tuple(found)


def shared_out(at: Layout, shape: tuple[int, ...], axis: str, pes: int) -> Layout:
    """PEs that all hold the same tile go on with a share of it each; dropping the rest costs nothing.

    >>> print(shared_out(Layout((1,), (100,)), (5800,), "y", 96))
    [y58x100]
    """
    parts = list(at.along(axis))
    last = max((d for d, p in enumerate(parts) if p > 1), default=-1)
    free = strides(tuple(parts), pes)[-1] if parts else 1
    extent = at.local(shape)
    for d in range(last + 1, len(parts)):
        parts[d] = cut(extent[d], free)
        if parts[d] < extent[d]:
            break
        free //= parts[d]
    return at.with_axis(axis, parts)


def lay(shape: tuple[int, ...], axis: str, dims, pes: int) -> Layout:
    """The dimensions `dims` nested along `axis`, the others whole."""
    dims = list(dims)
    parts = [1] * len(shape)
    for d, p in zip(dims, nest(tuple(shape[d] for d in dims), pes), strict=True):
        parts[d] = p
    return whole(len(shape)).with_axis(axis, parts)


def all_reduce(
    at: Layout, dims, axis: str, elements: int, itemsize: int, grid: Grid, wafer: Wafer, strategy: Strategy
) -> list[Step]:
    """All-reduce of `elements` among the PEs of an axis that hold different parts of `dims`, by the algorithm that the
    strategy names, or the cheapest. Every copy and every line across takes part on its own."""
    parts, pes = at.along(axis), getattr(grid, axis)
    participants = math.prod(parts[d] for d in dims)
    if participants <= 1:
        return []
    span = sum((parts[d] - 1) * s for d, s in enumerate(strides(parts, pes)) if d in dims)
    lines = grid.pes // pes * strides(parts, pes)[-1] * math.prod(p for d, p in enumerate(parts) if d not in dims)
    words = wavelets(elements, itemsize, wafer)
    name, shape = choose_all_reduce(participants, words, span, wafer, strategy)
    return [AllReduce(name, participants, span, words, lines, shape, straight=strategy.compiled)]


def choose_all_reduce(pes: int, words: int, span: int, wafer: Wafer, strategy: Strategy) -> tuple[str, tuple[int, ...]]:
    """(algorithm, shape) that the strategy names, or the cheapest."""
    if strategy.all_reduce is not None:
        return strategy.all_reduce(pes)
    return collectives.cheapest_all_reduce(pes, words, span, Costs.of(wafer, strategy.compiled), int(wafer.colors))


def _blocks(parts: tuple[int, ...], shape: tuple[int, ...], pes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First and last-but-one index, [PE, dimension], of what each PE of an axis holds, and which PEs hold anything."""
    rest, digits, active = np.arange(pes), [], np.ones(pes, bool)
    for p, stride in zip(parts, strides(parts, pes), strict=True):
        digit = rest // stride
        active &= digit < p
        rest = rest - digit * stride
        digits.append(digit)
    tile = np.array([-(-n // p) for n, p in zip(shape, parts, strict=True)])
    start = np.minimum(np.stack(digits, axis=-1) * tile, shape)
    return start, np.minimum(start + tile, shape), active


def _owner(
    parts: tuple[int, ...], shape: tuple[int, ...], pes: int, index: Sequence[np.ndarray], folds: Sequence[int],
    margins: Sequence[tuple[int, int]] = (),
) -> np.ndarray:  # fmt: skip
    """The first PE of an axis that holds each element; `index` has one array a dimension."""
    owner = np.zeros(np.broadcast_shapes(*(i.shape for i in index)), dtype=np.int64)
    margins = margins or ((0, 0),) * len(shape)
    for n, p, stride, i, f, (a, b) in zip(shape, parts, strides(parts, pes), index, folds, margins, strict=True):
        n, i = n + a + b, np.clip(i + a, 0, n + a + b - 1) if a or b else i
        owner = owner + i % -(-n // f) // -(-n // (f * p)) * stride
    return owner


def traffic(source: np.ndarray, target: np.ndarray, pes: int) -> tuple[int, int, int, int]:
    """(farthest, fullest link, total hops, largest message) when element e goes from PE source[e] to PE target[e] along
    a line."""
    source, target = source.ravel(), target.ravel()
    distance = np.abs(target - source)
    loads = []
    for low, high in ((source, target), (target, source)):
        ahead = low < high
        ends = np.bincount(low[ahead], minlength=pes + 1) - np.bincount(high[ahead], minlength=pes + 1)
        loads.append(int(np.cumsum(ends).max(initial=0)))
    messages = np.unique((source * pes + target)[distance > 0], return_counts=True)[1]
    return int(distance.max(initial=0)), max(loads), int(distance.sum()), int(messages.max(initial=0))


def exchange(
    shape: tuple[int, ...],
    source: tuple[tuple[int, ...], Layout],
    target: Layout,
    offset: tuple[int, ...],
    stride: tuple[int, ...],
    per_element: int,
    axis: str,
    grid: Grid,
    itemsize: int,
    wafer: Wafer,
) -> list[Step]:
    """PEs of an axis pass elements on: element i of `shape`, laid as `target`, was element offset + i*stride of an
    array of shape `source[0]` laid as `source[1]`. `per_element` elements, whole in the other dimensions, go along."""
    pes = getattr(grid, axis)
    source_shape, before, after = source[0], source[1].along(axis), target.along(axis)
    dims = [d for d in range(len(shape)) if before[d] > 1 or after[d] > 1]
    if not dims:
        return []
    index = np.meshgrid(*(np.arange(shape[d]) for d in dims), indexing="ij", sparse=True)
    came = [offset[d] + i * stride[d] for d, i in zip(dims, index, strict=True)]
    first, last = (
        _owner(
            tuple(parts[d] for d in dims),
            tuple(sizes[d] for d in dims),
            pes,
            where,
            [at.fold(d) for d in dims],
            [at.margin(d) if parts[d] > 1 else (0, 0) for d in dims],
        )
        for parts, sizes, at, where in ((before, source_shape, source[1], came), (after, shape, target, index))
    )
    tile = math.prod(target.fold(d) * -(-shape[d] // (target.fold(d) * after[d])) for d in dims)
    return _passed_on(first, last, after, tile * per_element, per_element, axis, grid, itemsize, wafer)


def _passed_on(first, last, target, tile, per_element, axis: str, grid: Grid, itemsize, wafer: Wafer) -> list[Step]:
    """Elements go from PE first[e] to PE last[e]; a part that several PEs keep is then multicast among them."""
    pes = getattr(grid, axis)
    distance, load, total, largest = traffic(first, last, pes)
    if not distance:
        return []
    lines = grid.pes // pes
    words = wavelets(load * per_element, itemsize, wafer)
    hops = wavelets(total * per_element, itemsize, wafer)
    steps: list[Step] = [Shift(distance, words, hops, lines, wavelets(largest * per_element, itemsize, wafer))]
    copies = strides(target, pes)[-1]
    if copies > 1:
        steps.append(Multicast(copies, copies - 1, wavelets(tile, itemsize, wafer), lines * math.prod(target)))
    return steps


@lru_cache(maxsize=65536)
def regroup(
    shape: tuple[int, ...], parts: tuple[int, ...], new_shape: tuple[int, ...], new_parts: tuple[int, ...],
    per_element: int, axis: str, grid: Grid, itemsize: int, wafer: Wafer,
) -> tuple[Step, ...]:  # fmt: skip
    """A reshape along one axis: elements keep their order, and change PE only where the cuts do not agree."""
    pes = getattr(grid, axis)
    first, last = (
        _owner(p, s, pes, list(np.meshgrid(*map(np.arange, s), indexing="ij", sparse=True)), (1,) * len(s))
        for p, s in ((parts, shape), (new_parts, new_shape))
    )
    tile = math.prod(-(-n // p) for n, p in zip(new_shape, new_parts, strict=True)) * per_element
    return tuple(_passed_on(first, last, new_parts, tile, per_element, axis, grid, itemsize, wafer))


@lru_cache(maxsize=65536)
def relayout(
    shape: tuple[int, ...], itemsize: int, source: Layout, target: Layout, grid: Grid, wafer: Wafer
) -> tuple[Step, ...]:
    """The steps that bring an array from one layout to another within its region.

    Per axis: nothing where every PE already holds what it needs; a multicast within segments where parts are put
    together; otherwise the PEs pass elements on along the axis. Axes that only drop data go first.
    """
    steps: list[Step] = []
    now = source
    for axis in sorted("yx", key=lambda a: math.prod(source.along(a)) - math.prod(target.along(a))):
        uncut = [min(a, b) for a, b in zip(source.along(_other(axis)), now.along(_other(axis)), strict=True)]
        extent = tuple(-(-n // o) for n, o in zip(shape, uncut, strict=True))
        steps += _along_axis(shape, extent, itemsize, now, target, axis, grid, wafer)
        now = now.with_axis(axis, target.along(axis))
    return tuple(steps)


def _other(axis: str) -> str:
    return "x" if axis == "y" else "y"


def _along_axis(
    shape, extent, itemsize, now: Layout, target: Layout, axis: str, grid: Grid, wafer: Wafer
) -> list[Step]:
    before, parts, pes = now.along(axis), target.along(axis), getattr(grid, axis)
    folds = [
        (now.fold(d) if b > 1 else 0, target.fold(d) if p > 1 else 0) for d, (b, p) in enumerate(zip(before, parts))
    ]
    refolded = any(0 < a != b > 0 for a, b in folds)
    both = [d for d, (b, p) in enumerate(zip(before, parts, strict=True)) if b > 1 and p > 1]
    moved = any(now.margin(d) != target.margin(d) for d in both)
    if (before == parts and not refolded and not moved) or math.prod(before) == 1:
        return []
    if not refolded and not any(at.margin(d) != (0, 0) for d in both for at in (now, target)):
        pieces = tuple(-(-n // max(1, *f)) for n, f in zip(extent, folds, strict=True))
        have_from, have_to, has = _blocks(before, pieces, pes)
        need_from, need_to, needs = _blocks(parts, pieces, pes)
        inside = (have_from <= need_from) & (need_to <= have_to) & has[:, None]
        if bool(inside[needs].all()):
            return []
        around = (need_from <= have_from) & (have_to <= need_to)
        if bool(around[has & needs].all()) and bool(needs[has].all()):
            segment = strides(parts, pes)[-1]
            words = wavelets(now.with_axis(axis, parts).size(shape), itemsize, wafer)
            return [Multicast(segment, segment - 1, words, grid.pes // segment)]
    moving = [d for d in range(len(shape)) if before[d] > 1 or parts[d] > 1]
    per_element = math.prod(extent[d] for d in range(len(shape)) if d not in moving)
    zero, one = (0,) * len(shape), (1,) * len(shape)
    return exchange(extent, (extent, now), target, zero, one, per_element, axis, grid, itemsize, wafer)


def default_extent(limit: int) -> list[int]:
    """Region heights or widths worth trying: those that divide the wafer evenly, and round ones, about 12 % apart.

    >>> default_extent(24)
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 15, 16, 18, 20, 24]
    """
    powers = {1 << e for e in range(limit.bit_length())} | {limit // n for n in range(1, min(limit, 24) + 1)}
    even = {limit // n for n in range(1, limit + 1)}
    round_ones = {m * p for p in powers for m in (3, 5, 7, 9)}
    found: list[int] = []
    for n in sorted(n for n in even | powers | round_ones if n <= limit):
        if n in powers or n == limit or not found or n >= found[-1] * 1.06:
            found.append(n)
    return found
