"""The vocabulary of what a wafer can do; every op lowers to a short list of these.

A step says what happens on ONE line of PEs (or one PE) and how many such lines do it at once (`instances`).
Everything that asks about the machine reads steps: `cost.py` in closed form, a simulator cycle by cycle, a picture.
Units: `pes` participants, `span` hops from the first to the last, `wavelets` 32-bit words, `length` elements.
A `straight` step stands in straight-line code that was prepared when it was compiled; others run in a loop.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Compute:
    """Vector instructions on `instances` PEs: `calls` of `length` elements each; `flops` useful operations in all.

    `kind` is "fmac", "vector" (add, multiply, compare, move), "sum" (into one accumulator), "divide" or
    "transcendental" (both one element at a time). The calls run in `maps` hardware maps, or each in a loop of its own
    (`maps` 0), or with nothing around them (`bare`). `conflict` is the share of elements both of whose reads meet
    one bank of SRAM. Each call first works through `after` elements of other steps (fused), so this one adds its own
    only.
    """

    kind: str
    calls: int
    length: int
    itemsize: int
    flops: int
    instances: int
    maps: int = 0
    conflict: float = 0.0
    bare: bool = False
    straight: bool = False
    after: int = 0


@dataclass(frozen=True)
class Multicast:
    """One PE of each line sends `wavelets` to all others of its line."""

    pes: int
    span: int
    wavelets: int
    instances: int
    straight: bool = False


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
    """Each line sums `wavelets` and every participant gets the sum; `shape` has the level sizes of a "k_level", or the
    depth of a generated tree.

    `after` wavelets of other values go ahead in the same collective (fused), so this one adds its data only.
    """

    algorithm: str
    pes: int
    span: int
    wavelets: int
    instances: int
    shape: tuple[int, ...] = ()
    after: int = 0
    straight: bool = False


@dataclass(frozen=True)
class Shift:
    """PEs of a line pass data to others at most `distance` hops away; the fullest link carries `wavelets`, and the
    `largest` message would need that many of its own."""

    distance: int
    wavelets: int
    total_wavelet_hops: int
    instances: int
    largest: int
    straight: bool = False


@dataclass(frozen=True)
class Rounds:
    """`times` rounds that each compute and pass data on at the same time: a round takes the longer of the two, and
    what it takes to start it: `transfers` set up, `tasks` switched."""

    times: int
    compute: tuple["Step", ...]
    fabric: tuple["Step", ...]
    transfers: int
    tasks: int


@dataclass(frozen=True)
class Move:
    """`wavelets` travel `distance` hops to another region of the same wafer, spread over `links` parallel lines; all of
    the last `delivers` PEs on the way take them in."""

    distance: int
    wavelets: int
    links: int
    delivers: int = 0
    straight: bool = False


@dataclass(frozen=True)
class HostLink:
    """`nbytes` between the wafer and its host."""

    nbytes: int


@dataclass(frozen=True)
class WaferLink:
    """`nbytes` to the next wafer."""

    nbytes: int


@dataclass(frozen=True)
class Stream:
    """`inward` bytes from external memory to every wafer and `outward` bytes back, at the same time, through `levels`
    levels of a tree that copies what goes in and sums what comes out at the rate of the link; 0 levels is one wafer."""

    inward: int
    outward: int
    levels: int


Step = Compute | Multicast | Reduce | AllReduce | Shift | Rounds | Move | HostLink | WaferLink | Stream
