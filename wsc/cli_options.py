"""What the commands share: consoles, options that mean the same everywhere, the wafer of a name, a spinner."""

import contextlib
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from wsc.errors import ArgumentError

out, err = Console(), Console(stderr=True)

Wafer = Annotated[str, typer.Option(help="hardware: wse2 or wse3")]
Wafers = Annotated[int | None, typer.Option(help="wafers at most; as many as are needed unless told")]
Context = Annotated[int, typer.Option(help="tokens of the KV cache")]
Batch = Annotated[int, typer.Option(help="users served by one step")]
Weights = Annotated[str, typer.Option(help="stored as: model (the model's own dtype), int8 or int4")]
Order = Annotated[str, typer.Option(help="how partial sums add up: fabric or xla")]
PrefillChunk = Annotated[int | None, typer.Option(help="tokens a prefill program takes at a time")]
Dead = Annotated[float | None, typer.Option(help="share of PEs that are dead, at random: 0 to 0.2")]
Seed = Annotated[int, typer.Option(help="of the dead PEs")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object instead of tables")]


def hardware(name: str) -> Any:
    """The wafer of that name."""
    from wsc.machine.wafer import WAFERS

    if name.lower() not in WAFERS:
        raise ArgumentError(f"no wafer named {name!r}: there are {', '.join(WAFERS)}")
    return WAFERS[name.lower()]


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """A spinner with the time gone by, on a terminal only."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        progress.add_task(what)
        yield
