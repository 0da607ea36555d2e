"""Pictures of a run: what links carried, who waited and why, over the grid; and its figures as a table."""

import base64
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from wsc.errors import ArgumentError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from wsc.runtime.fabric.simulate import Run

DOTS = 600  # of a side of a panel at most; a dot of a larger grid is the largest of its PEs, so that no line is lost
LONG = 4  # sides of which one is so many times the other are drawn equally long
LINKS = ("north", "south", "west", "east")
RAMPS = ("up", "down")
OF_PES, OF_ROUTERS = ("starved", "blocked", "preparing"), ("full", "lost")
CAUSES = {
    "starved": "PE starved: no input there",
    "blocked": "PE blocked: its way out is full",
    "preparing": "PE prepares an instruction",
    "full": "router: the way on is full",
    "lost": "router: the link went to another color",
    "busy": "PE at work",
}


def busiest(counts: dict[str, np.ndarray]) -> np.ndarray:
    """Wavelets over the busiest outgoing link of each router [rows, columns]; the ramp is none."""
    return np.maximum.reduce([counts[name] for name in LINKS])


def coarse(array: np.ndarray, dots: int = DOTS) -> np.ndarray:
    """A grid on at most `dots` x `dots`, each the largest of a square of PEs.

    >>> coarse(np.arange(10).reshape(2, 5), dots=2).tolist()
    [[7, 9]]
    """
    size = -(-max(array.shape) // dots)
    if size == 1:
        return array
    rows, columns = (range(0, n, size) for n in array.shape)
    return np.maximum.reduceat(np.maximum.reduceat(array, rows, axis=0), columns, axis=1)


def links(run: "Run") -> "Figure":
    """A figure of the share of cycles in which each link carried a wavelet: the busiest link of each router, those to
    each side, and its ramp, the busier way."""
    shares = {"the busiest link of a router": busiest(run.counts)}
    shares |= {f"to the {name}": run.counts[name] for name in LINKS}
    shares["the ramp, the busier way"] = np.maximum(*(run.counts[name] for name in RAMPS))
    label = "wavelets, % of cycles"
    return _panels(run, "Wavelets over links", {name: (count, label) for name, count in shares.items()}, same=True)


def stalls(run: "Run") -> "Figure":
    """A figure of the share of cycles that PEs and routers wait, a panel for each cause, each with its own scale."""
    shares = {title: (run.counts[name], "% of cycles") for name, title in CAUSES.items()}
    return _panels(run, "Who waits", shares, same=False)


def _panels(run: "Run", what: str, shown: dict[str, tuple[np.ndarray, str]], same: bool) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ArgumentError("a picture needs matplotlib: pip install 'wsc[plot]'") from error
    rows, columns = run.fabric.rows, run.fabric.columns
    square = max(rows, columns) <= LONG * min(rows, columns)
    high = 3.4 * min(max(rows / columns, 0.5), 1.6) + 0.7 if square else 2.6
    figure = Figure(figsize=(13, 2 * high + 0.5), layout="constrained")
    percent = {name: 100 * coarse(count) / max(1, run.cycles) for name, (count, _) in shown.items()}
    largest = max(float(p.max()) for p in percent.values())
    grid = figure.subplots(2, -(-len(shown) // 2), squeeze=False)
    edges = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    for axes, (name, (_, label)) in zip(grid.flat, shown.items(), strict=True):
        top = largest if same else float(percent[name].max())
        image = axes.imshow(
            percent[name], vmin=0, vmax=top or 1, extent=edges, interpolation="nearest",
            aspect="equal" if square else "auto", cmap="inferno",
        )  # fmt: skip
        axes.set_title(name, fontsize=10)
        axes.set(xlabel="column of the PE", ylabel="row of the PE")
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        figure.colorbar(image, ax=axes, label=label)
    side = -(-max(rows, columns) // DOTS)
    dots = f"; a dot is the largest of {side} x {side} PEs" if side > 1 else ""
    figure.suptitle(f"{what}: {conditions(run)}{dots}")
    return figure


def conditions(run: "Run") -> str:
    """What was run, in words: cycles, the grid, the hardware's cycles."""
    t = run.timing
    return (
        f"{run.cycles:,} cycles, {run.fabric.rows} x {run.fabric.columns} PEs; "
        f"cycles: hop {t.hop}, delivering {t.deliver}, ramp {t.ramp}, setup {t.setup}"
    )


def table(run: "Run") -> Table:
    """The figures of a run; cycles alone where nothing was counted."""
    pes = run.fabric.rows * run.fabric.columns
    found = Table(title=f"Fabric, cycle by cycle: {conditions(run)}")
    for name, justify in (("figure", "left"), ("value", "right"), ("unit", "left")):
        found.add_column(name, justify=justify)  # type: ignore[arg-type]
    found.add_row("cycles", f"{run.cycles:,}", "cycles")
    if not run.counts:
        found.caption = "Nothing was counted: watch=False"
        return found
    cycles, most = max(1, run.cycles), busiest(run.counts)
    y, x = divmod(int(most.argmax()), most.shape[1])
    way = max(LINKS, key=lambda name: run.counts[name][y, x])
    found.add_row("wavelets over links", f"{sum(int(run.counts[n].sum()) for n in LINKS):,}", "wavelets")
    found.add_row("wavelets over ramps, both ways", f"{sum(int(run.counts[n].sum()) for n in RAMPS):,}", "wavelets")
    if most.any():
        share = f"wavelets, {100 * most[y, x] / cycles:.1f} % of cycles"
        found.add_row(f"busiest link: PE ({y}, {x}) to the {way}", f"{int(most[y, x]):,}", share)
    found.add_section()
    for name, title in CAUSES.items():
        waited = int(run.counts[name].sum())
        whose = "router" if name in OF_ROUTERS else "PE"
        found.add_row(title, f"{waited:,}", f"{whose}-cycles, {100 * waited / (pes * cycles):.1f} %")
    return found


def html(run: "Run") -> str:
    """The table, and the heat map under it where matplotlib is there and something was counted."""
    console = Console(file=io.StringIO(), record=True, width=110, force_jupyter=False)
    console.print(table(run))
    text = console.export_html(inline_styles=True, code_format="<pre style='font-size:12px'>{code}</pre>")
    try:
        picture = base64.b64encode(png(links(run))).decode() if run.counts else ""
    except ArgumentError:
        picture = ""
    shown = f"<img alt='wavelets over links' style='max-width:100%' src='data:image/png;base64,{picture}'/>"
    return text + (shown if picture else "")


def png(figure: "Figure", kind: str = "png") -> bytes:
    """A figure as the bytes of a file."""
    out = io.BytesIO()
    figure.savefig(out, format=kind, dpi=100)
    return out.getvalue()


def save(figure: "Figure", path: str | Path):
    """Write a figure; the file's ending says as what."""
    kind = Path(path).suffix[1:]
    if not kind:
        raise ArgumentError(f"cannot write the picture to {str(path)!r}: name a file with an ending, such as out.png")
    try:
        data = png(figure, kind)
    except ValueError as error:
        raise ArgumentError(f"cannot write the picture to {str(path)!r}: {error}") from error
    write(path, data, "picture")


def write(path: str | Path, data: bytes, what: Any):
    """Write a file whole or not at all."""
    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        try:
            part.write_bytes(data)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise ArgumentError(f"cannot write the {what} to {str(path)!r}: {error}") from error
