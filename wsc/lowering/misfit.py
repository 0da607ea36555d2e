"""What is said when a program cannot be placed: by how much it does not fit, and what would."""

from typing import TYPE_CHECKING

from wsc.errors import FitError
from wsc.layout import Grid
from wsc.machine.wafer import Wafer

if TYPE_CHECKING:
    from wsc.lowering.place import Goal, Placer


def too_slow(goal: "Goal", wafer: Wafer, cycles: float) -> FitError:
    """Users were promised a speed that no placement looked at gives; the fastest takes so many `cycles` a token."""
    return FitError(
        f"no placement was found whose tokens come at {goal.speed:,.6g} a second for each user: the fastest gives "
        f"{wafer.clock_hz / cycles:,.6g} before moves. Ask for a lower speed, or give more wafers."
    )


def too_large(placer: "Placer") -> FitError:
    """What does not fit, by how much, and what would: found by trying, not by arithmetic."""
    pes, needed = int(placer.wafer.pes), placer.needed
    total = sum(placer.leader.stored(i) * n for i, n in placer.count.items())
    big = max(placer.count, key=lambda i: placer.least[i])
    message = (
        f"the program does not fit: {_size(total)} of weights and state need at least {needed:,} PEs of "
        f"{placer.usable:,} B beside the code, and a {placer.wafer.name} has {pes:,}."
    )
    if placer.goal.grid is not None:
        h, w = placer.goal.grid
        short = [i for i in placer.count if not placer.holds(i, Grid(h, w), placer.both)]
        if short:
            first = short[0]
            needs = placer.least[first]
            why = f"its weights and state need {needs:,}" if needs > h * w else "its PEs have no room for buffers"
            return FitError(
                f"stage '{placer.stages[first].name}' does not fit a region of {h} x {w} PEs: {why}. Give a larger "
                f"grid, or none to have sizes chosen."
            )
    if placer.short_of_colors is not None:
        i, colors = placer.short_of_colors
        return FitError(
            f"stage '{placer.stages[i].name}' communicates in ways that take {colors} colors, and "
            f"{int(placer.wafer.colors)} are free on a {placer.wafer.name}: split the stage, or give it more colors"
        )
    if placer.least[big] > pes:
        return FitError(
            f"{message} Stage '{placer.stages[big].name}' alone needs {placer.least[big]:,}, more than a wafer has, so "
            f"more wafers do not help: split it into stages with weights of their own, or use a smaller dtype."
        )
    if placer.limit is not None:
        over = needed - placer.limit * pes
        by = f"It is over by {over:,} PEs on" if over > 0 else "With buffers and whole stages it does not fit on"
        more = range(placer.limit + 1, 4 * (needed // pes + 1) + 5)
        enough = next((n for n in more if placer.best(n) is not None), None)
        advice = f"give it wafers={enough}." if enough else "no number of wafers was found that would do."
        return FitError(f"{message} {by} {placer.limit}: {advice}")
    rows = "of a language model: a shorter context, a smaller batch or prefill chunk"
    if placer.leader.roles.trained:
        rows = "of a training step: a smaller batch or shorter sequences, or jax.checkpoint around each layer"
    return FitError(
        f"{message} No region was found for stage '{placer.stages[big].name}' whose PEs stay within "
        f"{int(placer.wafer.sram_bytes):,} B with their buffers. Use smaller shapes ({rows}) or a "
        f"smaller dtype."
    )


def _size(nbytes: int) -> str:
    """In the unit that leaves few digits: 16.33 GB, 4.1 MB, 400 B."""
    unit, of = next((u for u in ((1e9, "GB"), (1e6, "MB")) if nbytes >= u[0]), (1, "B"))
    return f"{nbytes / unit:,.4g} {of}"
