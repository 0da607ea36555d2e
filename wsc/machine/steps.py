"""The vocabulary of what a wafer can do; every op lowers to a short list of these.

A step says what happens on ONE line of PEs (or one PE) and how many such lines do it at once (`instances`).
Everything that asks about the machine reads steps: `cost.py` in closed form, a simulator cycle by cycle, a picture.
Units: `pes` participants, `span` hops from the first to the last, `wavelets` 32-bit words, `length` elements.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Compute:
    """Vector instructions on `instances` PEs: `calls` of `length` elements each; `flops` useful operations in all.

    `kind` is "fmac", "vector" (add, multiply, compare, move), "divide" or "transcendental" (one element at a time).
    """

    kind: str
    calls: int
    length: int
    itemsize: int
    flops: int
    instances: int


@dataclass(frozen=True)
class Multicast:
    """One PE of each line sends `wavelets` to all others of its line."""

    pes: int
    span: int
    wavelets: int
    instances: int


@dataclass(frozen=True)
class Reduce:
    """Each line sums `wavelets` from every participant into its first one, in the order `algorithm` names."""

    algorithm: str
    pes: int
    span: int
    wavelets: int
    instances: int


@dataclass(frozen=True)
class AllReduce:
    """A reduce, then a multicast of the result along the same line."""

    algorithm: str
    pes: int
    span: int
    wavelets: int
    instances: int


@dataclass(frozen=True)
class Shift:
    """PEs of a line pass data to others at most `distance` hops away; the fullest link carries `wavelets`."""

    distance: int
    wavelets: int
    total_wavelet_hops: int
    instances: int


@dataclass(frozen=True)
class Move:
    """`wavelets` travel `distance` hops to another region of the same wafer, spread over `links` parallel lines."""

    distance: int
    wavelets: int
    links: int


@dataclass(frozen=True)
class HostLink:
    """`nbytes` between the wafer and its host."""

    nbytes: int


@dataclass(frozen=True)
class WaferLink:
    """`nbytes` to the next wafer."""

    nbytes: int


Step = Compute | Multicast | Reduce | AllReduce | Shift | Move | HostLink | WaferLink
