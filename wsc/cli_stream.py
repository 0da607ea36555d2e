"""The `stream` command: training of a model whose weights stream in, over one wafer or many."""

import json
import re
from typing import Annotated, Any

import typer

from wsc.errors import ArgumentError


def numbers(text: str) -> tuple[int, ...]:
    """Numbers of wafers: "1,3,16", or "1..64" for the powers of two from one to the other.

    >>> numbers("1..16"), numbers("1,3,16")
    ((1, 2, 4, 8, 16), (1, 3, 16))
    """
    if found := re.fullmatch(r"(\d+)\.\.(\d+)", text):
        first, last = map(int, found.groups())
        if 1 <= first <= last:
            return tuple(first << i for i in range((last // first).bit_length()))
    elif re.fullmatch(r"\d+(,\d+)*", text):
        return tuple(map(int, text.split(",")))
    raise ArgumentError(f"wafers is {text!r}: it must be like 1..64, the powers of two, or like 1,3,16")


def stream(
    model: Annotated[str, typer.Argument(help="a named config (see wsc models) or a config.json")],
    wafers: Annotated[str, typer.Option(help="how many: 1..64 for the powers of two, or 1,3,16")] = "1..64",
    batch: Annotated[int, typer.Option(help="sequences of a step, of each wafer (weak) or of all (strong)")] = 8,
    sequence: Annotated[int, typer.Option(help="tokens of a sequence")] = 2048,
    microbatch: Annotated[int | None, typer.Option(help="sequences a wafer takes at a time; all unless told")] = None,
    scaling: Annotated[str, typer.Option(help="weak: batch is that of a wafer; strong: of all together")] = "weak",
    keep: Annotated[str, typer.Option(help="where inputs of layers wait for the way back: wafer or memory")] = "wafer",
    wafer: Annotated[str, typer.Option(help="hardware: wse2 or wse3")] = "wse3",
    plot: Annotated[str | None, typer.Option(help="write speed against wafers as a picture")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object instead of tables")] = False,
) -> None:
    """Train a model whose weights stream in from external memory: what a step takes, over one wafer or many."""
    import wsc
    from wsc.cli import config_of, hardware, out, waiting

    options: dict[str, Any] = {"batch": batch, "sequence": sequence, "microbatch": microbatch, "wafer": hardware(wafer)}
    with waiting(f"compiling a layer of {model}, forward and backward"):
        network = wsc.models.Llama.abstract(config_of(model))
        found = wsc.streamed(network, wafers=numbers(wafers), scaling=scaling, keep=keep, name=model, **options)
    if plot is not None:
        found.plot(plot)
    print(json.dumps(found.as_dict())) if as_json else out.print(found)
