"""How long messages take that share links: a fluid model, every link shared max-min fair.

Routes are dimension-ordered: along x in the row of the source, then along y. A link is one direction between two
neighbouring routers, or a PE's ramp out to its router or in from it; messages of all colours share its wavelets a
cycle. Any moment the rates of the moving messages are those of progressive filling: all grow alike until a link is
full, the messages through it keep what they have, the others grow on. Rates are worked out anew whenever a message
starts or finishes. A multicast is one tree and moves at one rate on all of its links.

Every link of a route is held from the start of a message to the moment its last wavelet leaves the source: the
cycles between routers are added to the time of a message, not to the moment it meets another. Queues and their
lengths, colours and arbitration are not modelled. Source of links and ramps: the vendor's SDK documentation.
Axes: `y` rows, growing to the south, and `x` columns, growing to the east. Time is in cycles, data in wavelets.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from wsc.errors import ArgumentError
from wsc.machine.wafer import Wafer

PORTS = ("ramp out", "ramp in", "east", "west", "south", "north")
_SAME = 1e-9  # two moments (cycles) or two rates (relative) closer than this are one


class Link(NamedTuple):
    """What leaves the router of PE (y, x) to the side `port`; "ramp out" is from the PE to its router."""

    y: int
    x: int
    port: str


@dataclass(frozen=True)
class Message:
    """`wavelets` from one PE to others, each PE a (y, x); more than one target makes it a multicast tree.

    >>> Message(source=(0, 0), targets=((0, 5), (3, 5)), wavelets=64).start
    0.0
    """

    source: tuple[int, int]
    targets: tuple[tuple[int, int], ...]
    wavelets: float
    start: float = 0.0  # cycles: when its first wavelet may leave

    def __post_init__(self):
        try:
            pes = np.asarray([self.source, *self.targets])
        except (ValueError, TypeError):
            pes = np.zeros(0)
        if pes.ndim != 2 or pes.shape[-1] != 2 or pes.dtype.kind not in "iu":
            raise ArgumentError(
                f"a message goes from {self.source!r:.99} to {self.targets!r:.99}: expected every PE as whole (y, x)"
            )
        if len(pes) == 1:
            raise ArgumentError(f"the message from PE {self.source} has no target: expected one PE (y, x) or more")
        if (pes[1:] == pes[0]).all(axis=1).any():
            raise ArgumentError(
                f"the message from PE {self.source} has its source among its targets: expected other PEs only"
            )
        for name in ("wavelets", "start"):
            value = getattr(self, name)
            if not isinstance(value, int | float | np.integer | np.floating) or not 0 <= value < math.inf:
                raise ArgumentError(
                    f"{name} of the message from PE {self.source} is {value!r}: expected a finite number, 0 or above"
                )


@dataclass(frozen=True, eq=False)
class Transfer:
    """What came of a list of messages; the first two arrays are in the order of the list."""

    ideal: np.ndarray  # (messages,) cycles from start to last arrival, were the message alone on the fabric
    contended: np.ndarray  # (messages,) cycles from start to last arrival, links shared
    links: np.ndarray  # (links, 3) of every link in use: y, x, index into PORTS
    loads: np.ndarray  # (links,) wavelets that cross it in all

    @property
    def busiest(self) -> tuple[Link, float] | None:
        """The link with the most wavelets, and how many, the first in y, x of equal ones; None when nothing moves."""
        if not len(self.loads):
            return None
        most = int(np.argmax(self.loads))
        y, x, port = self.links[most].tolist()
        return Link(y, x, PORTS[port]), float(self.loads[most])

    @property
    def congested(self) -> bool:
        """Whether some message is more than a cycle slower than it would be alone."""
        return bool((self.contended > self.ideal + 1).any())

    @property
    def slowdown(self) -> float:
        """The most that sharing stretches a message: max contended / ideal; 1 when nothing moves."""
        moves = self.ideal > 0
        return float((self.contended[moves] / self.ideal[moves]).max(initial=1.0))


def transfer_times(messages: Sequence[Message], wafer: Wafer) -> Transfer:
    """Times of all `messages` on one fabric. Alone, a message of B wavelets takes

        hops * hop_cycles + 2 * ramp_cycles + 1 + B / link_wavelets_per_cycle

    with the hops to its furthest target; a message of no wavelets takes no time and loads no link.

    >>> from wsc.machine.wafer import WSE3
    >>> row = [Message(source=(0, x), targets=((0, 9),), wavelets=100) for x in range(8)]
    >>> together = transfer_times(row, WSE3)
    >>> together.ideal[:2], together.contended[:2]
    (array([114., 113.]), array([814., 813.]))
    >>> together.busiest, together.congested
    ((Link(y=0, x=7, port='east'), 800.0), True)
    """
    messages = list(messages) if isinstance(messages, Iterable) else [messages]
    if wrong := [m for m in messages if not isinstance(m, Message)]:
        raise ArgumentError(f"{wrong[0]!r} is no Message: give a list of wsc.machine.contention.Message")
    width = float(wafer.link_wavelets_per_cycle)
    columns = int(wafer.columns)
    wavelets = np.array([message.wavelets for message in messages], float)
    start = np.array([message.start for message in messages], float)
    sources = np.array([message.source for message in messages], np.int64).reshape(-1, 2)
    owner = np.repeat(np.arange(len(messages)), [len(message.targets) for message in messages])
    targets = np.array([pe for message in messages for pe in message.targets], np.int64).reshape(-1, 2)
    for kind, of, pes in (("source", np.arange(len(messages)), sources), ("target", owner, targets)):
        outside = ((pes < 0) | (pes >= (int(wafer.rows), columns))).any(axis=1)
        if outside.any():
            first = int(np.argmax(outside))
            raise ArgumentError(
                f"message {of[first]} has PE {tuple(pes[first].tolist())} as a {kind}, outside the wafer:"
                f" expected y in 0..{wafer.rows - 1} and x in 0..{columns - 1}"
            )

    hops = np.zeros(len(messages), np.int64)
    np.maximum.at(hops, owner, np.abs(targets - sources[owner]).sum(axis=1))
    latency = hops * float(wafer.hop_cycles) + (2 * float(wafer.ramp_cycles) + 1)
    ideal = np.where(wavelets > 0, latency + wavelets / width, 0.0)

    message, number = _routes(sources, owner, targets, columns)
    moves = wavelets[message] > 0
    message, (numbers, link) = message[moves], np.unique(number[moves], return_inverse=True)
    router, port = np.divmod(numbers, len(PORTS))
    contended = np.zeros(len(messages))
    moved = np.flatnonzero(wavelets)
    rank = np.cumsum(wavelets > 0) - 1
    finish = _finish(*_binding(rank[message], link), wavelets[moved], start[moved], width)
    contended[moved] = np.maximum(finish - start[moved] + latency[moved], ideal[moved])  # over: rounding only
    return Transfer(
        ideal=ideal,
        contended=contended,
        links=np.stack([router // columns, router % columns, port], axis=1),
        loads=np.bincount(link, weights=wavelets[message], minlength=len(numbers)),
    )


def _routes(sources, owner, targets, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Every (message, link number) once, the links of a message together and in the order of its route.

    Link number: (y * columns + x) * len(PORTS) + port. A route is a few straight segments: a trunk along x to the
    furthest column on each side, and in every column with a target a branch along y to the furthest on each side.
    """
    every = np.arange(len(sources))
    source = sources[:, 0] * columns + sources[:, 1]
    pe, (y, x) = targets[:, 0] * columns + targets[:, 1], targets.T
    east, west = sources[:, 1].copy(), sources[:, 1].copy()
    np.maximum.at(east, owner, x)
    np.minimum.at(west, owner, x)
    names, branch = np.unique(owner * columns + x, return_inverse=True)
    of, column = np.divmod(names, columns)
    south, north = sources[of, 0], sources[of, 0]
    np.maximum.at(south, branch, y)
    np.minimum.at(north, branch, y)
    turn = sources[of, 0] * columns + column
    _, single = np.unique(np.stack([owner, pe]), axis=1, return_index=True)
    segments = (  # message, first router, links, port
        (every, source, np.ones_like(every), 0),
        (every, source, east - sources[:, 1], 2),
        (every, source, sources[:, 1] - west, 3),
        (of, turn, south - sources[of, 0], 4),
        (of, turn, sources[of, 0] - north, 5),
        (owner[single], pe[single], np.ones_like(single), 1),
    )
    message, first, length = (np.concatenate([segment[i] for segment in segments]) for i in range(3))
    port = np.repeat([segment[3] for segment in segments], [len(segment[0]) for segment in segments])
    stride = np.array([0, 0, 1, -1, columns, -columns])[port]
    segment = np.repeat(np.arange(len(message)), length)
    along = np.arange(len(segment)) - (np.cumsum(length) - length)[segment]
    number = (first[segment] + along * stride[segment]) * len(PORTS) + port[segment]
    order = np.argsort(message[segment], kind="stable")
    return message[segment][order], number[order]


def _binding(message, link) -> tuple[np.ndarray, np.ndarray]:
    """Only the entries of links that can hold a message back, those links numbered from 0.

    A link cannot when it serves one message, or when all it serves also pass one other link. Such links are sought
    side by side on routes, again and again: along a line the messages of a link are mostly some of its neighbour's.
    """
    while True:
        users = np.bincount(link)
        links = max(len(users), 1)
        same = message[1:] == message[:-1]
        pairs, both = np.unique(link[:-1][same] * links + link[1:][same], return_counts=True)
        a, b = np.divmod(pairs, links)
        idle = users <= 1
        for one, other in ((a, b), (b, a)):  # of two links with the same messages the lower number stays
            covered = (both == users[one]) & ((users[other] > users[one]) | (other < one))
            idle[one[covered]] = True
        if not idle.any():
            return message, link
        keep = ~idle[link]
        message, link = message[keep], np.unique(link[keep], return_inverse=True)[1]


def _finish(message, link, wavelets, start, width: float) -> np.ndarray:
    """The cycle at which the last wavelet of every message has left; entries are sorted by message.

    A message that starts or finishes changes no rate below its own, for filling goes the same way up to there: only
    the rates from that level up are worked out anew.
    """
    left, rate, finish = wavelets.copy(), np.full(len(wavelets), np.inf), np.zeros(len(wavelets))
    moving, links = np.zeros(len(wavelets), bool), int(link.max(initial=-1)) + 1
    order = np.argsort(start, kind="stable")
    starts, begun, now = start[order], 0, -np.inf
    while begun < len(order) or moving.any():
        active = np.flatnonzero(moving)
        ends = now + left[active] / rate[active]
        then = min(ends.min(initial=np.inf), starts[begun] if begun < len(order) else np.inf)
        left[active] -= rate[active] * (then - now) if len(active) else 0.0
        done = ends <= then + _SAME
        gone = active[done]
        finish[gone], moving[gone] = ends[done], False
        level, now = rate[gone].min(initial=np.inf), then
        if len(gone):
            stays = np.ones(len(wavelets), bool)
            stays[gone] = False
            stays = stays[message]
            message, link = message[stays], link[stays]
        until = int(np.searchsorted(starts, now, side="right"))
        new, begun = order[begun:until], until
        moving[new] = True
        on = moving[message]
        if len(new):  # its rate will be no less than an even share of its fullest link
            users = np.bincount(link[on], minlength=links)
            fresh = np.zeros(len(wavelets), bool)
            fresh[new] = True
            level = min(level, width / users[link[fresh[message]]].max(initial=1))
        again = moving & (rate >= level * (1 - _SAME))
        if again.any():
            redo = again[message]
            kept = on & ~redo
            free = width - np.bincount(link[kept], weights=rate[message[kept]], minlength=links)
            rate[again] = _fair_rates(message[redo], link[redo], free, len(wavelets), width)[again]
    return finish


def _fair_rates(message, link, free, messages: int, width: float) -> np.ndarray:
    """Max-min fair rates of the messages of the entries, sorted by message, on links with `free` wavelets a cycle.

    Progressive filling, many links at a time: a link is full at its even share when none of its messages has a link
    with less to share, for the shares of links only grow while others fill.
    """
    rates, level = np.full(messages, width), np.zeros(messages)
    while len(message):
        users = np.bincount(link, minlength=len(free))
        share = (free / np.maximum(users, 1))[link]
        first = np.flatnonzero(np.diff(message, prepend=-1))
        level[message[first]] = np.minimum.reduceat(share, first)
        tight = share <= level[message] * (1 + _SAME * 1e-3)
        full = np.bincount(link[tight], minlength=len(free)) == users
        frozen = np.zeros(messages, bool)
        frozen[message[full[link]]] = True
        rates[frozen] = level[frozen]
        out = frozen[message]
        free = free - np.bincount(link[out], weights=rates[message[out]], minlength=len(free))
        message, link = message[~out], link[~out]
    return rates
