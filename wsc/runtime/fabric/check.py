"""What is wrong with a program of a fabric before its first cycle: loops, and wavelets that nobody takes in."""

import numpy as np

from wsc.errors import MissingReceiverError, RouteLoopError
from wsc.runtime.fabric.program import NOWHERE, OPPOSITE, PORT_NAMES, RAMP, Fabric

STEP = ((-1, 0), (1, 0), (0, -1), (0, 1))  # rows and columns to the neighbour at a port


def check(fabric: Fabric):
    """Raises RouteLoopError and MissingReceiverError."""
    for color in range(fabric.colors):
        _check_ends(fabric, color)
        _check_loops(fabric, color)
    _check_instructions(fabric)


def _passes(fabric: Fabric, color: int, into: int, out: int) -> np.ndarray:
    """Routers [rows, columns] that in some position send from port `into` to port `out`."""
    rx, tx = fabric.rx[color], fabric.tx[color]
    return ((rx == into) & (tx >> out & 1 > 0)).any(axis=0)


def _neighbour(array: np.ndarray, port: int, outside: int = 0) -> np.ndarray:
    """What the router behind `port` has."""
    dy, dx = STEP[port]
    padded = np.pad(array, 1, constant_values=outside)
    return padded[1 + dy : 1 + dy + array.shape[0], 1 + dx : 1 + dx + array.shape[1]]


def _check_ends(fabric: Fabric, color: int):
    """What a router sends a neighbour takes in, in some position of its switch."""
    rx, tx = fabric.rx[color], fabric.tx[color]
    for port in range(4):
        sends = ((rx != NOWHERE) & (tx >> port & 1 > 0)).any(axis=0)
        takes = _neighbour((rx == OPPOSITE[port]).any(axis=0), port)
        lost = np.argwhere(sends & ~takes)
        if len(lost):
            y, x = lost[0]
            raise MissingReceiverError(
                f"color {color} goes {PORT_NAMES[port]} from the router of PE ({y}, {x}), and the router there never "
                f"takes it in from {PORT_NAMES[OPPOSITE[port]]}: route it on, or to the ramp ({len(lost)} such routers)"
            )


def _check_loops(fabric: Fabric, color: int):
    """No wavelet can come back to a port of a router by which it came in."""
    passing = {(i, o): _passes(fabric, color, i, o) for i in range(4) for o in range(4)}
    turns = sum(int(p.any()) for (i, o), p in passing.items() if o != OPPOSITE[i])
    if not turns and not any((passing[i, i]).any() for i in range(4)):
        return  # straight ways leave the grid
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    size = fabric.rows * fabric.columns
    node = np.arange(size).reshape(fabric.rows, fabric.columns)
    sources, targets = [], []
    for (i, o), where in passing.items():
        behind = _neighbour(node, o, outside=-1)
        ok = where & (behind >= 0)
        sources.append(i * size + node[ok])
        targets.append(OPPOSITE[o] * size + behind[ok])
    a, b = np.concatenate(sources), np.concatenate(targets)
    graph = coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(4 * size, 4 * size))
    _, part = connected_components(graph, directed=True, connection="strong")
    many = np.flatnonzero(np.bincount(part)[part] > 1)
    if len(many):
        pes = sorted({divmod(int(n % size), fabric.columns) for n in many})
        shown = ", ".join(map(str, pes[:8]))
        raise RouteLoopError(
            f"color {color} is routed in a loop through the routers of PEs {shown}{' ...' if len(pes) > 8 else ''}: a "
            f"wavelet would never leave it; end it at a ramp"
        )


def _check_instructions(fabric: Fabric):
    """PEs send on colors that their router takes in from the ramp, and read colors that it gives them; what it gives
    them they read."""
    read = np.bitwise_or.reduce(fabric.code["reads"], axis=(0, 1), initial=0)
    sent = np.bitwise_or.reduce(fabric.code["sends"], axis=(0, 1), initial=0)
    for color in range(fabric.colors):
        rx, tx = fabric.rx[color], fabric.tx[color]
        up, down = (rx == RAMP).any(axis=0), ((rx != NOWHERE) & (tx >> RAMP & 1 > 0)).any(axis=0)
        reads, sends = (read >> color & 1) > 0, (sent >> color & 1) > 0
        for bad, text in (
            (sends & ~up, "sends color {c}, which its router never takes in from the ramp: route it from there"),
            (reads & ~down, "reads color {c}, which its router never gives it: route it to the ramp"),
            (down & ~reads, "is given color {c} by its router and has no instruction that reads it"),
        ):
            where = np.argwhere(bad)
            if len(where):
                y, x = where[0]
                raise MissingReceiverError(f"PE ({y}, {x}) {text.format(c=color)} ({len(where)} such PEs)")
