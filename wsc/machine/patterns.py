"""Ask for a pattern of communication, get the cheapest algorithm that the colors allow, with its name and its bound.

Patterns on a line of P PEs: multicast, reduce, all_reduce, shift (everyone to the PE `distance` further), exchange
(neighbours two hops apart swap, interleaved so that a ring of PEs has no long way back), gather, scatter, all_to_all.
On a rectangle of M x N PEs: multicast, reduce, all_reduce, all_to_all. `wavelets` is what one participant contributes;
of a scatter and an all_to_all, what it has for each other participant.
"""

import math
from typing import NamedTuple

from wsc.errors import ArgumentError
from wsc.machine import collectives, reduce_tree
from wsc.machine.collectives import NOTHING, REDUCES, Costs, Form, Line, all_reduce, multicast, reduce, ways
from wsc.machine.wafer import WSE3, Wafer

SNAKE = 1024  # PEs of a rectangle up to which more than a chain is tried along one line through all
PATTERNS = ("multicast", "reduce", "all_reduce", "shift", "exchange", "gather", "scatter", "all_to_all")


class Choice(NamedTuple):
    """The cheapest algorithm of a pattern, its cycles, and cycles that no algorithm goes below."""

    pattern: str
    algorithm: str
    groups: tuple[int, ...]
    form: Form
    lower_bound: float

    @property
    def cycles(self) -> float:
        return self.form.cycles


def choose(
    pattern: str,
    pes: int | tuple[int, int],
    wavelets: float,
    wafer: Wafer = WSE3,
    colors: int | None = None,
    distance: int = 1,
    setup: bool = True,
) -> Choice:
    """The cheapest algorithm for `pattern` among `pes` neighbours of a line, or on a rectangle (rows, columns).

    `colors` are those still free in the region, all of the wafer's unless told. `setup=False` leaves out the cycles
    that software takes to prepare an instruction, as the published forms do. Raises ArgumentError when none is found.

    >>> choose("all_reduce", 512, 1).algorithm, choose("all_reduce", 512, 1, colors=4).algorithm
    ('centre_tree', 'centre_tree')
    >>> choose("reduce", 512, 4096).algorithm, round(choose("reduce", 512, 4096, setup=False).cycles)
    ('chain', 7162)
    """
    if pattern not in PATTERNS:
        raise ArgumentError(f"no pattern named {pattern!r}: there are {', '.join(PATTERNS)}")
    sizes = tuple(pes) if isinstance(pes, tuple | list) else (pes,)
    good = all(isinstance(n, int) and n >= 1 for n in (*sizes, distance))
    good &= len(sizes) == (2 if isinstance(pes, tuple | list) else 1)
    if not good or not isinstance(wavelets, int | float) or not 0 <= wavelets < math.inf:
        raise ArgumentError(
            f"{pattern} of {wavelets} wavelets among {pes} PEs, {distance} apart: sizes and distance must be whole "
            f"numbers of at least 1 (a rectangle is a pair), wavelets finite and at least 0"
        )
    longest, shortest = max(wafer.rows, wafer.columns), min(wafer.rows, wafer.columns)
    if max(sizes) > longest or (len(sizes) == 2 and min(sizes) > shortest):
        raise ArgumentError(f"{pattern} among {pes} PEs: a {wafer.name} has {wafer.rows} x {wafer.columns}")
    if colors is not None and not isinstance(colors, int):
        raise ArgumentError(f"colors is {colors!r}: it must be a whole number")
    free = int(wafer.colors) if colors is None else colors
    costs = Costs.of(wafer) if setup else Costs.of(wafer)._replace(setup=0.0)
    if isinstance(pes, int):
        options = _line(pattern, pes, wavelets, costs, distance)
    else:
        options = _rectangle(pattern, sizes, wavelets, costs)
    allowed = [o for o in options if o[2].colors <= free]
    if not allowed:
        least = min((o[2].colors for o in options), default=None)
        why = (
            f"it needs {least} colors and {free} are free"
            if least
            else "only multicast, reduce, all_reduce, all_to_all"
        )
        raise ArgumentError(f"no algorithm for {pattern} on {pes} PEs: {why}")
    name, groups, form = min(allowed, key=lambda o: o[2].cycles)
    return Choice(pattern, name, groups, form, float(_bound(pattern, sizes, wavelets, costs, distance)))


def _line(pattern: str, pes: int, wavelets: float, c: Costs, distance: int) -> list[tuple[str, tuple[int, ...], Form]]:
    line = Line(pes, wavelets, pes - 1)
    if pattern == "multicast":
        return [("multicast", (), multicast(line, c))]
    if pattern == "reduce":
        return [(name, (), reduce(name, line, c)) for name in REDUCES]
    if pattern == "all_reduce":
        options = [(name, groups, all_reduce(name, line, c, groups)) for name, groups in ways(pes, wavelets)]
        return [*options, ("ring", (), all_reduce("ring", line, c))]
    if pattern == "shift":
        return [("shift", (), passing(pes, min(distance, max(1, pes - 1)), wavelets, c))]
    if pattern == "exchange":
        return [("interleaved", (), exchange(pes, wavelets, c))]
    if pattern in ("gather", "scatter"):
        form = reduce("star", line, c)
        return [(pattern, (), form)]
    return [("direct", (), _all_to_all(pes, wavelets, c)), ("ring", (), _ring_all_to_all(pes, wavelets, c))]


def passing(pes: int, distance: int, wavelets: float, c: Costs) -> Form:
    """Everyone sends to the PE `distance` hops on; of the messages that share a link all but one wait, less what the
    others take to come there. Each message has a color, or, where these are too many, all share two."""
    if pes <= 1:
        return NOTHING
    sharing = min(distance, pes - distance)
    sent = wavelets * max(0, pes - distance)
    latency, serial = distance * c.hop + c.relay, collectives.queued(sharing, wavelets, c)
    setup = collectives.both_ways(latency + serial, wavelets, c) if pes > 2 * distance else c.setup
    return Form(latency, serial, setup, sent, sent * distance, distance + 1 if distance < 18 else 2)


def exchange(pes: int, wavelets: float, c: Costs) -> Form:
    """Everyone to the next of a ring folded onto the line: two hops, and one at either end."""
    if pes <= 1:
        return NOTHING
    latency, serial = min(2, pes - 1) * c.hop + c.relay, wavelets / c.width
    setup = collectives.both_ways(latency + serial, wavelets, c)
    return Form(latency, serial, setup, wavelets * pes, wavelets * (2 * pes - 2), 4)


def _all_to_all(pes: int, wavelets: float, c: Costs) -> Form:
    """Everyone to everyone at once: the middle link carries what one half has for the other."""
    if pes <= 1:
        return NOTHING
    load = wavelets * (pes // 2) * (pes - pes // 2)
    sent = wavelets * pes * (pes - 1)
    return Form((pes - 1) * c.hop + c.relay, load / c.width, 2 * c.setup, sent, sent * (pes + 1) / 3, min(pes, 24))


def _ring_all_to_all(pes: int, wavelets: float, c: Costs) -> Form:
    """In P - 1 rounds of the interleaved ring, everything not yet home going one place on."""
    if pes <= 1:
        return NOTHING
    rounds = pes - 1
    moved = wavelets * pes * (pes - 1) / 2
    return Form(rounds * (2 * c.hop + c.relay), moved / c.width, 2 * rounds * c.setup, moved * pes, 2 * moved * pes, 3)


def _rectangle(
    pattern: str, sizes: tuple[int, ...], wavelets: float, c: Costs
) -> list[tuple[str, tuple[int, ...], Form]]:
    """Rows first, then the columns; a snake visits all PEs as one line."""
    rows, columns = sizes
    across, down = Line(columns, wavelets, columns - 1), Line(rows, wavelets, rows - 1)
    if pattern == "multicast":
        line = Line(rows + columns - 1, wavelets, rows + columns - 2)
        both = multicast(line, c)
        colors = (rows > 1) + (columns > 1)
        return [("tree", (), both._replace(colors=colors, hops=wavelets * (rows * columns - 1)))]
    if pattern == "reduce":
        snake = Line(rows * columns, wavelets, rows * columns - 1)
        options = [
            (f"{a} then {b}", (), reduce(a, across, c).then(reduce(b, down, c))) for a in REDUCES for b in REDUCES
        ]
        return options + [
            (f"snake {a}", (), reduce(a, snake, c)) for a in REDUCES if snake.pes <= SNAKE or a == "chain"
        ]
    if pattern == "all_reduce":
        back = _rectangle("multicast", sizes, wavelets, c)[0][2]
        options = [(f"{n} and multicast", g, f.then(back)) for n, g, f in _rectangle("reduce", sizes, wavelets, c)]
        x, y = (
            min(_line("all_reduce", line.pes, wavelets, c, 1), key=lambda o: o[2].cycles) for line in (across, down)
        )
        options.append((f"{x[0]} then {y[0]}", x[1] + y[1], x[2].then(y[2])))
        if rows * columns <= SNAKE:
            along = _line("all_reduce", rows * columns, wavelets, c, 1)
            options += [(f"snake {name}", shape, form) for name, shape, form in along]
        return options
    if pattern == "all_to_all":
        along_x = _line("all_to_all", columns, wavelets * rows, c, 1)
        along_y = _line("all_to_all", rows, wavelets * columns, c, 1)
        return [(f"{x[0]} then {y[0]}", (), x[2].then(y[2])) for x in along_x for y in along_y]
    return []


def _bound(pattern: str, sizes: tuple[int, ...], wavelets: float, c: Costs, distance: int) -> float:
    """Cycles below which no algorithm goes: the way to the farthest, the data through the narrowest place, and of a
    reduce on a line the published recurrence."""
    total, across, b = math.prod(sizes), sum(sizes) - len(sizes), wavelets / c.width
    if total <= 1:
        return 0.0
    far = across * c.hop + c.relay
    if pattern == "reduce" and len(sizes) == 1:
        return reduce_tree.lower_bound(total, b, across * c.hop, c.relay)
    if pattern in ("reduce", "all_reduce"):  # all hear of the farthest, and take in as much data as they have
        return max(far, b + c.relay)
    if pattern == "multicast":
        return far + b
    if pattern == "shift":
        return min(distance, across) * c.hop + c.relay + b
    if pattern == "exchange":
        return c.hop + c.relay + b
    if pattern in ("gather", "scatter"):
        return max(b * (total - 1), far)
    longer, shorter = max(sizes), total // max(sizes)
    through_middle = (longer // 2 * shorter) * ((longer - longer // 2) * shorter) / shorter
    return max(far, b * through_middle, b * (total - 1))
