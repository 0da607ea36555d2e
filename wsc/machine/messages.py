"""Who adds to whom: every reduce along a line of PEs as a tree of messages."""

from functools import lru_cache

from wsc.machine import reduce_tree
from wsc.machine.collectives import group_size, k_levels

Senders = tuple[tuple[int, ...], ...]


@lru_cache(maxsize=4096)
def senders(algorithm: str, pes: int, shape: tuple[int, ...] = ()) -> tuple[Senders, int]:
    """From whom each PE takes in, in order, and the root: the reduce, or the reduce of the all-reduce, of that name;
    `shape` as in `AllReduce`. A PE sends on its sum once it has taken in all.

    >>> senders("chain", 4)
    (((1,), (2,), (3,), ()), 0)
    >>> senders("centre_star", 5)
    (((), (), (3, 4, 1, 0), (), ()), 2)
    """
    found: list[list[int]] = [[] for _ in range(pes)]
    if algorithm == "k_level":
        roots = list(range(pes))
        for size in k_levels(pes, shape):
            groups = [roots[i : i + size] for i in range(0, len(roots), size)]
            roots = [_join(found, group, "centre_chain", ()) for group in groups]
        return tuple(map(tuple, found)), roots[0]
    root = _join(found, list(range(pes)), algorithm, shape)
    return tuple(map(tuple, found)), root


def _join(found: list[list[int]], line: list[int], algorithm: str, shape: tuple[int, ...]) -> int:
    """Add the messages of a reduce over the PEs of `line`; returns its root."""
    if algorithm.startswith("centre_"):
        middle, name = len(line) // 2, algorithm.removeprefix("centre_")
        _join(found, line[middle:], name, shape)
        return _join(found, line[middle::-1], name, shape)
    for pe, takes_in in zip(line, _from_first(algorithm, len(line), shape), strict=True):
        found[pe] += [line[i] for i in takes_in]
    return line[0]


def _from_first(algorithm: str, pes: int, shape: tuple[int, ...]) -> Senders:
    """The messages of a reduce whose root is the first PE."""
    if algorithm == "chain":
        return (*((i + 1,) for i in range(pes - 1)), ())
    if algorithm == "star":
        return (tuple(range(1, pes)), *((),) * (pes - 1))
    if algorithm == "generated":
        return reduce_tree.children(pes, min(shape[0], pes - 1))
    if algorithm == "tree":
        distances = [1 << r for r in range(pes.bit_length())]
        return tuple(tuple(i + d for d in distances if i % (2 * d) == 0 and i + d < pes) for i in range(pes))
    if algorithm == "two_phase":
        size = group_size(pes)
        inside = [(i + 1,) if (i + 1) % size and i + 1 < pes else () for i in range(pes)]
        return tuple((*k, i + size) if i % size == 0 and i + size < pes else k for i, k in enumerate(inside))
    raise ValueError(f"no reduce named {algorithm!r}")
