"""Collectives along a line of PEs as routes and instructions: the algorithms that `wsc.machine.collectives` has in
closed form. A line is a Fabric of one row; `Fabric.across` lays it on rows or columns of a grid.

A message between two PEs holds a color at every router on its way: at its sender from the ramp, then from neighbour to
neighbour, at its end down the ramp. Its last wavelet moves the switches, so messages that follow one another share a
color. A reduce takes two colors: PEs take in by one and send by the other, as in turn down the tree, since a PE streams
the last message it takes in on to its own receiver, its data added.
"""

from collections.abc import Sequence

from wsc.errors import ArgumentError
from wsc.machine.collectives import generated_depth, k_levels
from wsc.machine.messages import senders
from wsc.runtime.fabric.program import EAST, OPPOSITE, RAMP, WEST, Fabric, Instruction


def _line(pes: int, wavelets: int, spacing: int) -> Fabric:
    if min(pes, wavelets, spacing) < 1:
        raise ArgumentError(f"{pes} PEs, {spacing} apart, {wavelets} wavelets: all must be at least 1")
    return Fabric(1, (pes - 1) * spacing + 1)


def _message(line: Fabric, color: int, source: int, target: int):
    """Routes from one PE to another, wherever between."""
    way = EAST if target > source else WEST
    line.route(color, (0, source), RAMP, [way])
    between = slice(min(source, target) + 1, max(source, target))
    if between.stop > between.start:
        line.route(color, (0, between), OPPOSITE[way], [way])
    line.route(color, (0, target), OPPOSITE[way], [RAMP])


def _add_reduce(
    line: Fabric, places: Sequence[int], algorithm: str, wavelets: int, shape: tuple[int, ...], colors
) -> int:
    """The reduce over the PEs at `places`, by messages of `wavelets` words at address 0; returns its root's place."""
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
            _message(line, colors[depth[parent[child]] % 2], places[child], places[parent[child]])
    for node, children in enumerate(tree):
        take = colors[depth[node] % 2]
        send = colors[(depth[node] - 1) % 2] if node != root else None
        adding = Instruction(wavelets, reads=(take,), load=True, store=True)
        kept = len(children) if send is None else len(children) - 1
        if kept > 0:
            line.instruct((0, places[node]), Instruction(**{**vars(adding), "repeat": kept}))
        if send is not None:
            reads = (take,) if children else ()
            line.instruct((0, places[node]), Instruction(wavelets, reads=reads, sends=send, load=True))
    return places[root]


def _down(tree, root: int):
    todo = [root]
    while todo:
        node = todo.pop()
        yield node
        todo += tree[node]


def _add_multicast(line: Fabric, places: Sequence[int], root: int, wavelets: int, store: bool = True):
    """From the PE at `root` to all others: first to one side, then to the other."""
    for way, rest in ((EAST, [p for p in places if p > root]), (WEST, [p for p in reversed(places) if p < root])):
        if not rest:
            continue
        color = line.color()
        line.route(color, (0, root), RAMP, [way])
        here, last = set(rest), rest[-1]
        for p in range(min(root + 1, last), max(root, last + 1)):
            onward = [way] if p != last else []
            line.route(color, (0, p), OPPOSITE[way], [*onward, *([RAMP] if p in here else [])])
        line.instruct((0, root), Instruction(wavelets, sends=color, load=True))
        for p in rest:
            line.instruct((0, p), Instruction(wavelets, reads=(color,), store=store))


def multicast(pes: int, wavelets: int, spacing: int = 1) -> Fabric:
    """The first PE's words 0 to `wavelets` to all others of a line whose participants are `spacing` hops apart."""
    line = _line(pes, wavelets, spacing)
    _add_multicast(line, range(0, line.columns, spacing), 0, wavelets)
    return line


def reduce(algorithm: str, pes: int, wavelets: int, shape: tuple[int, ...] = (), spacing: int = 1) -> Fabric:
    """The sum of the words 0 to `wavelets` of all participants, at the first one."""
    line = _line(pes, wavelets, spacing)
    if pes > 1:
        colors = line.color(), line.color()
        _add_reduce(
            line, range(0, line.columns, spacing), algorithm, wavelets, _shape(algorithm, pes, wavelets, shape), colors
        )
    return line


def all_reduce(algorithm: str, pes: int, wavelets: int, shape: tuple[int, ...] = (), spacing: int = 1) -> Fabric:
    """The same sum at every participant, by the algorithms of `wsc.machine.collectives.all_reduce` but the ring."""
    line = _line(pes, wavelets, spacing)
    places = list(range(0, line.columns, spacing))
    if pes == 1:
        return line
    if algorithm == "ring":
        raise ArgumentError(
            "a ring adds every part of the data in another order and is not simulated: take another all-reduce"
        )
    if algorithm == "k_level":
        lines = places
        for size in k_levels(pes, shape):
            colors = line.color(), line.color()
            groups = [lines[i : i + size] for i in range(0, len(lines), size)]
            lines = [_add_reduce(line, group, "centre_chain", wavelets, (), colors) for group in groups]
        root = lines[0]
    else:
        if pes == 2:
            algorithm = algorithm.removeprefix("centre_")
        half = pes // 2 + 1 if algorithm.startswith("centre_") else pes
        shape = _shape(algorithm.removeprefix("centre_"), half, wavelets, shape)
        root = _add_reduce(line, places, algorithm, wavelets, shape, (line.color(), line.color()))
    _add_multicast(line, places, root, wavelets)
    return line


def _shape(algorithm: str, pes: int, wavelets: int, shape: tuple[int, ...]) -> tuple[int, ...]:
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
        _message(line, color(source), source, source + distance)
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
        _message(line, colors[source], source, target)
    for pe, target in targets.items():
        line.instruct((0, pe), Instruction(wavelets, sends=colors[pe], load=True))
        store = Instruction(wavelets, reads=(colors[pe],), store=True, address=wavelets, thread=1)
        line.instruct((0, target), store)
    return line
