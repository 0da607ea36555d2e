"""Collectives along a line of PEs as routes and instructions: the algorithms that `wsc.machine.collectives` has in
closed form. A line is a Fabric of one row; `Fabric.across` lays it on rows or columns of a grid.

A message between two PEs holds a color at every router on its way: at its sender from the ramp, then from neighbour to
neighbour, at its end down the ramp. Its last wavelet moves the switches, so messages that follow one another share a
color. A reduce takes two colors: PEs take in by one and send by the other, as in turn down the tree, since a PE streams
the last message it takes in on to its own receiver, its data added.
"""

from collections.abc import Sequence
from dataclasses import replace

from wsc.errors import ArgumentError
from wsc.machine.collectives import generated_depth, k_levels
from wsc.machine.messages import senders
from wsc.runtime.fabric.program import EAST, OPPOSITE, RAMP, WEST, Fabric, Instruction


def _line(pes: int, wavelets: int, spacing: int) -> Fabric:
    if min(pes, wavelets, spacing) < 1:
        raise ArgumentError(f"{pes} PEs, {spacing} apart, {wavelets} wavelets: all must be at least 1")
    return Fabric(1, (pes - 1) * spacing + 1)


def add_message(line: Fabric, color: int, source: int, target: int):
    """Routes from one PE to another, wherever between."""
    way = EAST if target > source else WEST
    line.route(color, (0, source), RAMP, [way])
    between = slice(min(source, target) + 1, max(source, target))
    if between.stop > between.start:
        line.route(color, (0, between), OPPOSITE[way], [way])
    line.route(color, (0, target), OPPOSITE[way], [RAMP])


def add_reduce(
    line: Fabric,
    places: Sequence[int],
    algorithm: str,
    each: Instruction,
    shape: tuple[int, ...],
    colors: Sequence[int],
    apart: bool = False,
) -> int:
    """The reduce over the PEs at `places`, of the words that `each` has the length, the address and the way to combine
    of, on two `colors`; returns its root's place. A PE takes in its messages with one instruction, or, `apart`, with
    one for each."""
    tree, root = senders(algorithm, len(places), shape)
    depth = {root: 0}
    for node in _down(tree, root):
        depth |= dict.fromkeys(tree[node], depth[node] + 1)
    parent = {child: node for node, children in enumerate(tree) for child in children}
    sides = {True: [], False: []}  # a switch takes in the side first that its PE does
    for child in parent:
        sides[child > root].append(child)
    later_first = bool(tree[root]) and tree[root][0] < root
    for east in (not later_first, later_first):
        for child in sorted(sides[east], key=lambda c: abs(c - root)):
            add_message(line, colors[depth[parent[child]] % 2], places[child], places[parent[child]])
    for node, children in enumerate(tree):
        take = colors[depth[node] % 2]
        send = colors[(depth[node] - 1) % 2] if node != root else None
        kept = len(children) if send is None else len(children) - 1
        if kept > 0:
            adding = replace(each, reads=(take,), load=True, store=True, repeat=1 if apart else kept)
            for _ in range(kept if apart else 1):
                line.instruct((0, places[node]), adding)
        if send is not None:
            reads = (take,) if children else ()
            line.instruct((0, places[node]), replace(each, reads=reads, sends=send, load=True))
    return places[root]


def _down(tree, root: int):
    todo = [root]
    while todo:
        node = todo.pop()
        yield node
        todo += tree[node]


def add_multicast(line: Fabric, places: Sequence[int], root: int, each: Instruction, color: int):
    """From the PE at `root` to all others, to both sides at once."""
    west, east = min(*places, root), max(*places, root)
    here = set(places) - {root}
    if not here:
        return
    line.route(color, (0, root), RAMP, [*([WEST] if root > west else []), *([EAST] if root < east else [])])
    for way, side, last in ((WEST, range(west, root), west), (EAST, range(root + 1, east + 1), east)):
        for p in side:
            onward = [way] if p != last else []
            line.route(color, (0, p), OPPOSITE[way], [*onward, *([RAMP] if p in here else [])])
    line.instruct((0, root), replace(each, sends=color, load=True))
    for p in here:
        line.instruct((0, p), replace(each, reads=(color,), store=True))


def add_all_reduce(
    line: Fabric, places: Sequence[int], algorithm: str, each: Instruction, shape: tuple[int, ...], colors, heard=None
):
    """The sum over the PEs at `places` at all of them, or at all that have `heard` of it. `colors` are two for each
    level of the reduce, and one for the way back."""
    pes, colors, root = len(places), list(colors), places[0]
    if algorithm == "ring":
        raise ArgumentError(
            "a ring adds every part of the data in another order and is not simulated: take another all-reduce"
        )
    if algorithm == "k_level":
        roots = list(places)
        for size in k_levels(pes, shape):
            groups = [roots[i : i + size] for i in range(0, len(roots), size)]
            pair, colors = colors[:2], colors[2:]
            roots = [add_reduce(line, group, "centre_chain", each, (), pair, apart=True) for group in groups]
        root = roots[0]
    else:
        if pes == 2:
            algorithm = algorithm.removeprefix("centre_")
        half = pes // 2 + 1 if algorithm.startswith("centre_") else pes
        shape = shape_of(algorithm.removeprefix("centre_"), half, each.length, shape)
        root = add_reduce(line, places, algorithm, each, shape, colors[:2])
    add_multicast(line, places if heard is None else heard, root, each, colors[-1])


def all_reduce_colors(line: Fabric, algorithm: str, pes: int, shape: tuple[int, ...]) -> list[int]:
    """New colors for one."""
    levels = len(k_levels(pes, shape)) if algorithm == "k_level" else 1
    return [line.color() for _ in range(2 * levels + 1)]


def multicast(pes: int, wavelets: int, spacing: int = 1) -> Fabric:
    """The first PE's words 0 to `wavelets` to all others of a line whose participants are `spacing` hops apart."""
    line = _line(pes, wavelets, spacing)
    if pes > 1:
        add_multicast(line, range(0, line.columns, spacing), 0, Instruction(wavelets), line.color())
    return line


def reduce(algorithm: str, pes: int, wavelets: int, shape: tuple[int, ...] = (), spacing: int = 1) -> Fabric:
    """The sum of the words 0 to `wavelets` of all participants, at the first one."""
    line = _line(pes, wavelets, spacing)
    if pes > 1:
        colors, shape = (line.color(), line.color()), shape_of(algorithm, pes, wavelets, shape)
        add_reduce(line, range(0, line.columns, spacing), algorithm, Instruction(wavelets), shape, colors)
    return line


def all_reduce(algorithm: str, pes: int, wavelets: int, shape: tuple[int, ...] = (), spacing: int = 1) -> Fabric:
    """The same sum at every participant, by the algorithms of `wsc.machine.collectives.all_reduce` but the ring."""
    line = _line(pes, wavelets, spacing)
    if pes > 1:
        colors = all_reduce_colors(line, algorithm, pes, shape)
        add_all_reduce(line, range(0, line.columns, spacing), algorithm, Instruction(wavelets), shape, colors)
    return line.tidy()


def shape_of(algorithm: str, pes: int, wavelets: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (generated_depth(pes, wavelets),) if algorithm == "generated" and not shape else shape


def shift(pes: int, distance: int, wavelets: int, colors: int = 18) -> Fabric:
    """Words 0 to `wavelets` of every PE to words `wavelets` on of the PE `distance` further east.

    The messages of `distance` + 1 neighbours each have a color of their own, and share their links; with fewer
    `colors` it takes two: the line is cut into blocks of `distance` PEs, whose messages have one and the other in turn
    and end in the next block; a router sends its own PE's message first, then those of the PEs before it, the nearest
    first.
    """
    line = _line(pes, wavelets, 1)
    if distance < 1:
        raise ArgumentError(f"a shift by {distance}: it must be at least 1")
    if distance >= pes:
        return line
    apart = distance + 1 <= colors
    used = [line.color() for _ in range(distance + 1 if apart else 2)]

    def color(source: int) -> int:
        return used[source % len(used) if apart else source // distance % 2]

    for source in range(pes - distance - 1, -1, -1):
        add_message(line, color(source), source, source + distance)
    for pe in range(pes):
        if pe + distance < pes:
            line.instruct((0, pe), Instruction(wavelets, sends=color(pe), load=True))
        if pe >= distance:
            taking = Instruction(wavelets, reads=(color(pe - distance),), store=True, address=wavelets, thread=1)
            line.instruct((0, pe), taking)
    return line


def exchange(pes: int, wavelets: int) -> Fabric:
    """Words 0 to `wavelets` of every PE to words `wavelets` on of the next one of a ring folded onto the line: the even
    PEs eastwards, then the odd ones back, two hops each and one at either end."""
    line = _line(pes, wavelets, 1)
    if pes == 1:
        return line
    ring = [*range(0, pes, 2), *reversed(range(1, pes, 2))]
    east, west = (line.color(), line.color()), (line.color(), line.color())
    targets = dict(zip(ring, [*ring[1:], ring[0]], strict=True))
    colors = {pe: (east if target > pe else west)[pe // 2 % 2] for pe, target in targets.items()}
    for source, target in targets.items():
        add_message(line, colors[source], source, target)
    for pe, target in targets.items():
        line.instruct((0, pe), Instruction(wavelets, sends=colors[pe], load=True))
        store = Instruction(wavelets, reads=(colors[pe],), store=True, address=wavelets, thread=1)
        line.instruct((0, target), store)
    return line
