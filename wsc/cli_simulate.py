"""The `simulate` command: a placed stage cycle by cycle."""

import json
from typing import Annotated, Any

import typer

from wsc.cli_options import Context, Json, Wafer, Weights, hardware, out, waiting
from wsc.errors import ArgumentError


def simulate(
    model: Annotated[str, typer.Argument(help="a named config (see wsc models); with --prompt, what has weights")],
    stage: Annotated[str | None, typer.Option(help="its number or name; a layer unless told")] = None,
    scale: Annotated[float, typer.Option(help="of the region's sides: below 1 a cut-out is simulated")] = 1.0,
    prompt: Annotated[
        str | None, typer.Option(help="simulate the step after this text, with the values that PEs then add up")
    ] = None,
    grid: Annotated[int | None, typer.Option(help="PEs of a side of every region")] = None,
    context: Context = 2048,
    weights: Weights = "model",
    wafer: Wafer = "wse3",
    heat_map: Annotated[str | None, typer.Option(help="write what links carried as a picture")] = None,
    stalls: Annotated[str | None, typer.Option(help="write who waited, by cause, as a picture")] = None,
    trace: Annotated[str | None, typer.Option(help="write what some PEs did when, for ui.perfetto.dev")] = None,
    as_json: Json = False,
) -> None:
    """Simulate a stage of a decode step wavelet by wavelet, beside what the closed forms say of it."""
    import wsc
    from wsc.cli import config_of, stored_as

    options: dict[str, Any] = {"wafer": hardware(wafer), "context": context}
    options |= {"grid": (grid, grid)} if grid is not None else {}
    args: tuple = ()
    if prompt is None:
        with waiting(f"placing {model} on the wafer"):
            exe: Any = wsc.compile(stored_as(wsc.models.Llama.abstract(config_of(model)), weights), **options)
    else:
        network, tokenizer = wsc.models.load(model)
        if tokenizer is None:
            raise ArgumentError(f"{model} has no tokenizer beside it: put its tokenizer file into the same folder")
        with waiting(f"placing {model} on the wafer, reading the prompt"):
            exe = wsc.compile(stored_as(network, weights), **options)
            args = exe.arguments_after(tokenizer.encode(prompt))
    with waiting("simulating"):
        found = exe.simulate(*args, stage=int(stage) if stage and stage.isdigit() else stage, scale=scale)
    if heat_map is not None:
        found.run.save_links(heat_map)
    if stalls is not None:
        found.run.save_stalls(stalls)
    if trace is not None:
        found.run.save_trace(trace)
    print(json.dumps(found.as_dict())) if as_json else out.print(found)
