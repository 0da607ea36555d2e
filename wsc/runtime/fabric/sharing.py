"""Programs one after the other on the fewest colors: a color is used again where its switches have positions left."""

import numpy as np

from wsc.errors import ColorClashError
from wsc.runtime.fabric.program import NOWHERE, POSITIONS, Fabric, renumbered

MOST = 32  # colors of a simulated program; its instructions have masks of so many bits


def after(first: Fabric, second: Fabric) -> Fabric:
    """`first.then(second)`, but a color of `second` goes on on one of `first` wherever no router's switch then has more
    than its positions, on the one that takes the fewest more. Control wavelets move the switches on, so nothing of
    `second` passes a router before all of `first` on that color has. Raises ColorClashError above 32 colors.
    """
    numbers: list[int] = []
    for k in range(second.colors):
        costs = {j: more for j in range(first.colors) if j not in numbers and (more := _more(first, j, second, k)) >= 0}
        numbers.append(min(costs, key=lambda j: costs[j]) if costs else -1)
    both = Fabric(first.rows, first.columns)
    for name in ("rx", "tx", "controls"):
        setattr(both, name, getattr(first, name).copy())
    for k, j in enumerate(numbers):
        if j < 0:
            numbers[k] = both.color()
        _add(both, numbers[k], second, k)
    if both.colors > MOST:
        raise ColorClashError(
            f"{first!r} and then {second!r} take {both.colors} colors: a simulated program has at most {MOST}; "
            f"simulate fewer steps at once"
        )
    both.code, both.instructions = {n: t.copy() for n, t in first.code.items()}, first.instructions.copy()
    code = {n: renumbered(t, numbers) if n in ("reads", "sends") else t for n, t in second.code.items()}
    both.extend(code, second.instructions)
    return both


def _more(first: Fabric, j: int, second: Fabric, k: int) -> int:
    """Positions that switches get if color k of `second` goes on on color j of `first`; -1 where one has too many."""
    had, come, same = _met(first, j, second, k)
    more = come - same
    return -1 if (had + more).max(initial=0) > POSITIONS else int((more * (had > 0)).sum())


def _met(first: Fabric, j: int, second: Fabric, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each router: positions of the one color, of the other, and whether the other begins as the one ended."""
    had, come = ((f.rx[c] != NOWHERE).sum(axis=0) for f, c in ((first, j), (second, k)))
    last = np.maximum(had - 1, 0)[None]
    rx, tx = (np.take_along_axis(a[j], last, axis=0)[0] for a in (first.rx, first.tx))
    return had, come, (had > 0) & (come > 0) & (rx == second.rx[k, 0]) & (tx == second.tx[k, 0])


def _add(both: Fabric, j: int, second: Fabric, k: int):
    had, come, same = _met(both, j, second, k)
    for p in range(POSITIONS):
        rows, columns = np.nonzero(come > p)
        at = (had - same + p)[rows, columns]
        both.rx[j, at, rows, columns] = second.rx[k, p, rows, columns]
        both.tx[j, at, rows, columns] = second.tx[k, p, rows, columns]
        both.controls[j, at, rows, columns] += second.controls[k, p, rows, columns]
