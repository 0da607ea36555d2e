"""Pictures of a run: what links carried, who waited and why, over the grid; and its figures as a table."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from wsc.errors import ArgumentError
from wsc.runtime.fabric.files import write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from wsc.runtime.fabric.simulate import Run

DOTS = 600  # of a side of a panel at most; a dot of a larger grid is the largest of its PEs, so that no line is lost
LONG = 4  # sides of which one is so many times the other are drawn equally long
LINKS = ("north", "south", "west", "east")
RAMPS = ("up", "down")
STALLS = {
    "starved": "PE starved: no input there",
    "blocked": "PE blocked: its queue out is full",
    "preparing": "PE prepares an instruction",
    "full": "router: the way on is full",
    "lost": "router: the link went to another color",
}
WORK = {"busy": "PE busy"}


def links(run: "Run") -> "Figure":
    """A map of the share of cycles in which each link carried a wavelet: of each router the busiest link out, those to
    each side, and its ramp."""
    counts = run.counted()
    over = {"busiest link out": _busiest(counts)} | {f"link {name}": counts[name] for name in LINKS}
    ramp = {"ramp, up or down, the busier": np.maximum(*(counts[name] for name in RAMPS))}
    return _figure(run, "Wavelets over links", over | ramp, "wavelets over cycles of the run, %", list(over))


def stalls(run: "Run") -> "Figure":
    """A map of the share of cycles that PEs and routers waited, a panel for each cause on a scale of its own."""
    counts = run.counted()
    shown = {title: counts[name] for name, title in (STALLS | WORK).items()}
    return _figure(run, "Who waited", shown, "cycles of the run, %")


def _busiest(counts: dict[str, np.ndarray]) -> np.ndarray:
    return np.maximum.reduce([counts[name] for name in LINKS])


def _largest(array: np.ndarray, side: int) -> np.ndarray:
    """The largest of each `side` x `side` entries, of fewer at the far edges."""
    for axis in (0, 1):
        array = np.maximum.reduceat(array, range(0, array.shape[axis], side), axis=axis)
    return array


def _figure(run: "Run", what: str, shown: dict[str, np.ndarray], unit: str, together: Sequence[str] = ()) -> "Figure":
    """A panel for each of what is `shown`, as a share of cycles, those `together` on one scale."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ArgumentError("a picture needs matplotlib: pip install 'wsc[plot]'") from error
    rows, columns = run.fabric.rows, run.fabric.columns
    square = max(rows, columns) <= LONG * min(rows, columns)
    high = 3.4 * min(max(rows / columns, 0.5), 1.6) + 0.7 if square else 2.6
    figure = Figure(figsize=(13, 2 * high + 0.5), layout="constrained")
    side = -(-max(rows, columns) // DOTS)
    percent = {name: 100 * _largest(count, side) / max(1, run.cycles) for name, count in shown.items()}
    most = {name: float(p.max()) for name, p in percent.items()}
    most |= dict.fromkeys(together, max((most[name] for name in together), default=0))
    panels = figure.subplots(2, -(-len(shown) // 2), squeeze=False)
    for axes, (name, share) in zip(panels.flat, percent.items(), strict=True):
        image = axes.imshow(
            share, vmin=0, vmax=most[name] or 1, interpolation="nearest", cmap="inferno",
            extent=(-0.5, share.shape[1] * side - 0.5, share.shape[0] * side - 0.5, -0.5),
            aspect="equal" if square else "auto",
        )  # fmt: skip
        axes.set_title(name, fontsize=10)
        axes.set(xlabel="column", ylabel="row", xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        figure.colorbar(image, ax=axes, label=unit)
    dots = f"; a dot is the largest of {side} x {side} PEs" if side > 1 else ""
    figure.suptitle(f"{what}: {conditions(run)}{dots}")
    return figure


def conditions(run: "Run") -> str:
    """What was run, in words: cycles, the grid, the hardware's cycles."""
    t = run.timing
    return (
        f"{run.cycles:,} cycles on {run.fabric.rows} x {run.fabric.columns} PEs "
        f"(cycles: hop {t.hop}, delivering {t.deliver}, ramp {t.ramp}, setup {t.setup})"
    )


def table(run: "Run") -> Table:
    """The figures of a run; cycles alone where nothing was counted."""
    found = Table(title=f"Fabric: {conditions(run)}")
    for name in ("figure", "value", "unit"):
        found.add_column(name, justify="right" if name == "value" else "left")
    cycles, counts = max(1, run.cycles), run.counts
    found.add_row("cycles", f"{run.cycles:,}", "cycles")
    if not counts:
        found.caption = "nothing else was counted: watch=False"
        return found
    for name, ways in (("wavelets over links", LINKS), ("wavelets over ramps, up and down", RAMPS)):
        found.add_row(name, f"{sum(int(counts[way].sum(dtype=np.int64)) for way in ways):,}", "wavelets")
    most = _busiest(counts)
    if most.any():
        y, x = divmod(int(most.argmax()), most.shape[1])
        way = max(LINKS, key=lambda name: counts[name][y, x])
        share = f"wavelets, {100 * most[y, x] / cycles:.1f} % of cycles, {way} from PE ({y}, {x})"
        found.add_row("busiest link", f"{most[y, x]:,}", share)
    found.add_section()
    for name, title in (STALLS | WORK).items():
        spent = int(counts[name].sum(dtype=np.int64))
        whose = title.partition(":")[0].split()[0]
        found.add_row(title, f"{spent:,}", f"{whose}-cycles, {100 * spent / (cycles * most.size):.1f} % of all")
    return found


def html(run: "Run") -> str:
    """The map of links within a page; nothing where nothing was counted, or without matplotlib."""
    try:
        picture = base64.b64encode(_drawn(links(run), "png", dpi=75)).decode()
    except ArgumentError:
        return ""
    return f"<img alt='wavelets over links' style='max-width:100%' src='data:image/png;base64,{picture}'/>"


def save(figure: "Figure", path: str | Path) -> None:
    """Write a figure, as what the ending of the file says."""
    kind = Path(path).suffix[1:]
    if not kind:
        raise ArgumentError(f"cannot write the picture to {str(path)!r}: name a file with an ending, such as out.png")
    try:
        content = _drawn(figure, kind)
    except ValueError as error:
        raise ArgumentError(f"cannot write the picture to {str(path)!r}: {error}") from error
    write(path, content)


def _drawn(figure: "Figure", kind: str, dpi: int = 100) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format=kind, dpi=dpi)
    return out.getvalue()
