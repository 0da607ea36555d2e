"""Collectives of a rectangle of PEs: along its rows, then along its columns."""

from wsc.runtime.fabric import lines
from wsc.runtime.fabric.program import EAST, NORTH, RAMP, SOUTH, WEST, Fabric, Instruction, stacked


def multicast(rows: int, columns: int, wavelets: int) -> Fabric:
    """The words of PE (0, 0) to all others: along the first row, and from there down every column, on one color."""
    grid = Fabric(rows, columns)
    if rows * columns == 1:
        return grid
    color = grid.color()
    for y in (0, *((1,) if rows > 2 else ()), *((rows - 1,) if rows > 1 else ())):
        for x in (0, *((1,) if columns > 2 else ()), *((columns - 1,) if columns > 1 else ())):
            down = [SOUTH] if y < rows - 1 else []
            right = [EAST] if y == 0 and x < columns - 1 else []
            first = x == y == 0
            where = (
                slice(y, rows - 1) if y == 1 and rows > 2 else y,
                slice(x, columns - 1) if x == 1 and columns > 2 else x,
            )
            grid.route(
                color, where, RAMP if first else WEST if y == 0 else NORTH, [*down, *right, *([] if first else [RAMP])]
            )
    grid.instruct((0, 0), Instruction(wavelets, sends=color, load=True))
    taking = Instruction(wavelets, reads=(color,), store=True)
    grid.instruct((0, slice(1, None)), taking)
    grid.instruct((slice(1, None), slice(None)), taking)
    return grid


def reduce(algorithm: str, rows: int, columns: int, wavelets: int) -> Fabric:
    """The sum of all PEs' words at PE (0, 0): along every row, then along the first column."""
    across = lines.reduce(algorithm, columns, wavelets).across(rows)
    down = stacked([lines.reduce(algorithm, rows, wavelets).across(1, "y")], columns)
    return across.then(down)


def all_reduce(algorithm: str, rows: int, columns: int, wavelets: int, shape: tuple[int, ...] = ()) -> Fabric:
    """The sum at every PE: an all-reduce along every row, then along every column."""
    across = lines.all_reduce(algorithm, columns, wavelets, shape).across(rows)
    return across.then(lines.all_reduce(algorithm, rows, wavelets, shape).across(columns, "y"))


def shift(distance: int, rows: int, columns: int, wavelets: int) -> Fabric:
    """Everyone's words to the PE `distance` further east, then everyone's to the one as far south."""
    return (
        lines.shift(columns, distance, wavelets)
        .across(rows)
        .then(lines.shift(rows, distance, wavelets).across(columns, "y"))
    )


def exchange(rows: int, columns: int, wavelets: int) -> Fabric:
    """Everyone's words to the next of a folded ring along rows, then along columns."""
    return lines.exchange(columns, wavelets).across(rows).then(lines.exchange(rows, wavelets).across(columns, "y"))
