"""The `wsc` command: thin, it parses, calls the public API and prints. Figures go to stdout, progress to stderr."""

import dataclasses
import json
import sys
import time
from typing import Annotated, Any

import typer
from rich.table import Table

from wsc.cli_options import (
    Batch,
    Context,
    Dead,
    Json,
    Order,
    PrefillChunk,
    Seed,
    Wafer,
    Wafers,
    Weights,
    err,
    hardware,
    out,
    waiting,
)
from wsc.cli_simulate import simulate
from wsc.cli_stream import stream
from wsc.cli_train import train
from wsc.errors import ArgumentError, WscError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def options(debug: Annotated[bool, typer.Option(help="show the traceback of an error")] = False) -> None:
    """Compile JAX models onto a wafer-scale chip, run them, and see what the wafer would do."""


@app.command()
def run(
    prompt: Annotated[str, typer.Argument(help="the text to continue")],
    model: Annotated[
        str, typer.Option(help="smollm2-135m, a .gguf file, a folder or a Hugging Face id")
    ] = "smollm2-135m",
    max_new_tokens: Annotated[int, typer.Option(help="tokens to generate at most")] = 32,
    chat: Annotated[bool, typer.Option(help="put the prompt into the model's chat template")] = False,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.0,
    top_k: Annotated[int, typer.Option(help="keep the k most likely tokens; 0 keeps all")] = 0,
    top_p: Annotated[float, typer.Option(help="keep the most likely tokens up to this probability")] = 1.0,
    seed: Annotated[int, typer.Option(help="of the random choice")] = 0,
    wafer: Wafer = "wse3",
    wafers: Wafers = None,
    context: Context = 2048,
    weights: Weights = "model",
    order: Order = "fabric",
    as_json: Json = False,
) -> None:
    """Run a trained model through the placed program, and account for the wafer's work."""
    import wsc

    network, tokenizer = wsc.models.load(model)
    if tokenizer is None:
        raise ArgumentError(f"{model} has no tokenizer beside it: put its tokenizer file into the same folder")
    network = stored_as(network, weights)
    with waiting(f"placing {model} on the wafer"):
        exe: Any = wsc.compile(network, wafer=hardware(wafer), wafers=wafers, context=context, order=order)
    text = tokenizer.chat([{"role": "user", "content": prompt}]) if chat else prompt
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    pieces: list[str] = []
    stream = exe.stream(tokenizer, text, max_new_tokens, **sampling)
    if not as_json and not chat:
        out.print(prompt, style="dim", end="", markup=False, highlight=False)
    with waiting("compiling for this computer, reading the prompt"):
        pieces += (piece for piece in [next(stream, "")])
    begin = time.perf_counter()
    if not as_json:
        sys.stdout.write(pieces[0])
    for piece in stream:
        pieces.append(piece)
        if not as_json:
            sys.stdout.write(piece)
            sys.stdout.flush()
    if as_json:
        print(
            json.dumps(
                {"prompt": prompt, "text": "".join(pieces), "conditions": exe.program.conditions} | exe.cost_analysis()
            )
        )
        return
    seconds = time.perf_counter() - begin
    out.print("\n")
    out.print(exe.report())
    count = len(tokenizer.encode("".join(pieces)))
    out.print(f"This computer, measured: {max(0, count - 1) / seconds if seconds else 0:.1f} tokens/s, order={order}.")


@app.command("compile")
def compile_(
    model: Annotated[str, typer.Argument(help="a named config (see wsc models) or a config.json")],
    wafer: Annotated[str | None, typer.Option(help="wse2 or wse3; wse3 unless the strategy is for another")] = None,
    wafers: Wafers = None,
    context: Context = 2048,
    batch: Batch = 1,
    dtype: Annotated[str | None, typer.Option(help="of weights and activations; the config's unless told")] = None,
    weights: Weights = "model",
    strategy: Annotated[str, typer.Option(help="wsc, or waferllm: one layer, mapped as that paper does")] = "wsc",
    grid: Annotated[int | None, typer.Option(help="PEs of a side of every region, such as 540")] = None,
    prefill_chunk: PrefillChunk = None,
    dead: Dead = None,
    seed: Seed = 0,
    text: Annotated[bool, typer.Option(help="print the placed program instead of the report")] = False,
    as_json: Json = False,
) -> None:
    """Place a model without its weights, and report what one decode step costs."""
    import wsc

    network = stored_as(wsc.models.Llama.abstract(config_of(model), dtype=dtype), weights)
    chosen = None if wafer is None else hardware(wafer)
    if dead is not None:
        chosen = (chosen or hardware("wse2" if strategy == "waferllm" else "wse3")).with_defects(dead, seed)
    with waiting(f"placing {model} on the wafer"):
        exe = wsc.compile(
            network,
            wafer=chosen,
            wafers=wafers,
            context=context,
            batch=batch,
            strategy=strategy,
            grid=None if grid is None else (grid, grid),
            prefill_chunk=prefill_chunk,
        )
    if as_json:
        head = {"model": model, "wafer": exe.program.wafer.name, "conditions": exe.program.conditions}
        print(json.dumps(head | exe.cost_analysis() | dataclasses.asdict(exe.memory_analysis())))
    elif text:
        print(exe.as_text())
    else:
        out.print(exe.report())


@app.command()
def plan(
    model: Annotated[str, typer.Argument(help="a named config (see wsc models) or a config.json")],
    wafer: Wafer = "wse3",
    wafers: Wafers = None,
    context: Context = 2048,
    batch: Batch = 1,
    objective: Annotated[str, typer.Option(help="latency, throughput, users or wafers")] = "latency",
    speed: Annotated[float | None, typer.Option(help="tokens/s of each user, for --objective users")] = None,
    prefill_chunk: PrefillChunk = None,
    dead: Dead = None,
    seed: Seed = 0,
    weights: Weights = "model",
    against_waferllm: Annotated[bool, typer.Option("--against-waferllm", help="a layer of WaferLLM's too")] = False,
    as_json: Json = False,
) -> None:
    """Place a model without its weights: where it lies, how fast it is, how many it serves, how far from the least."""
    import wsc

    network = stored_as(wsc.models.Llama.abstract(config_of(model)), weights)
    chosen = hardware(wafer) if dead is None else hardware(wafer).with_defects(dead, seed)
    sizes: dict[str, Any] = {"wafers": wafers, "context": context, "batch": batch, "prefill_chunk": prefill_chunk}
    with waiting(f"placing {model} on the wafer"):
        exe: Any = wsc.compile(network, wafer=chosen, objective=objective, speed=speed, **sizes)
    with waiting("counting its users, and the least it could take"):
        found = wsc.plan_report(exe, waferllm=against_waferllm)
    print(json.dumps({"model": model} | found.as_dict())) if as_json else out.print(found)


@app.command()
def models(as_json: Json = False) -> None:
    """List the named model configs."""
    from wsc.models import CONFIGS

    if as_json:
        rows = {name: dataclasses.asdict(c) | {"parameters": c.parameters} for name, c in CONFIGS.items()}
        print(json.dumps(rows, default=str))
        return
    table = Table("name", "layers", "width", "heads (KV)", "vocabulary", "parameters")
    for name, c in CONFIGS.items():
        heads = f"{c.num_attention_heads} ({c.num_key_value_heads})"
        cells = (f"{c.num_hidden_layers}", f"{c.hidden_size:,}", heads, f"{c.vocab_size:,}", f"{c.parameters:,}")
        table.add_row(name, *cells)
    out.print(table)


@app.command()
def validate(
    group: Annotated[list[str] | None, typer.Option(help="only these groups of measurements")] = None,
    refit: Annotated[bool, typer.Option(help="fit the fitted constants again, and leave each model out once")] = False,
    plot: Annotated[str | None, typer.Option(help="write predicted against measured as a picture")] = None,
    fabric: Annotated[bool, typer.Option(help="hold the closed forms against the fabric simulator instead")] = False,
    sizes: Annotated[int, typer.Option(help="with --fabric: random sizes that are simulated")] = 200,
    setup: Annotated[bool, typer.Option(help="with --fabric: count what prepares an instruction")] = True,
    as_json: Json = False,
) -> None:
    """Hold the machine model against everything published; exit code 1 when a group is over its bar."""
    if fabric:
        from wsc.fabric_check import fabric_check

        with waiting(f"simulating {sizes} sizes cycle by cycle"):
            checked = fabric_check(sizes, setup=setup)
        print(json.dumps(checked.as_dict())) if as_json else out.print(checked)
        if not checked.passed:
            raise typer.Exit(1)
        return
    if refit:
        from wsc.refit import refit as fit

        with waiting("fitting the constants, each model left out once"):
            fitted = fit()
        print(json.dumps(fitted.as_dict())) if as_json else out.print(fitted)
        return
    from wsc.validate import validate as hold

    with waiting("predicting every published measurement"):
        found = hold(group or None)
    if plot is not None:
        found.plot(plot)
    print(json.dumps(found.as_dict())) if as_json else out.print(found)
    if not found.passed:
        raise typer.Exit(1)


@app.command()
def sensitivity(
    model: Annotated[str, typer.Argument(help="a named config (see wsc models) or a config.json")],
    wafer: Wafer = "wse3",
    wafers: Wafers = None,
    context: Context = 2048,
    batch: Batch = 1,
    as_json: Json = False,
) -> None:
    """Which number of the hardware matters most to one decode step of a model."""
    import wsc

    network = wsc.models.Llama.abstract(config_of(model))
    with waiting(f"placing {model} on the wafer, and its derivatives"):
        exe = wsc.compile(network, wafer=hardware(wafer), wafers=wafers, context=context, batch=batch)
        found = wsc.sensitivity(exe)
    print(json.dumps({"conditions": found.conditions} | found.as_dict())) if as_json else out.print(found)


@app.command()
def speculate(
    target: Annotated[str, typer.Argument(help="the model that decides: a named config or a config.json")],
    draft: Annotated[str, typer.Argument(help="the small one that proposes, of the same vocabulary")],
    tokens: Annotated[int, typer.Option(help="drafted tokens a round")] = 4,
    acceptance: Annotated[float, typer.Option(help="share of the judged tokens that the target accepts")] = 0.8,
    verify: Annotated[str, typer.Option(help="how the target checks them: pass or stream")] = "stream",
    wafer: Wafer = "wse3",
    wafers: Wafers = None,
    context: Context = 2048,
    as_json: Json = False,
) -> None:
    """Place two models without their weights, and report what speculative decoding would give."""
    import wsc

    networks = [wsc.models.Llama.abstract(config_of(name)) for name in (target, draft)]
    options: dict[str, Any] = {"wafer": hardware(wafer), "wafers": wafers, "context": context}
    with waiting(f"placing {target} and {draft} on the wafer"):
        plan = wsc.speculative(*networks, tokens=tokens, verify=verify, **options)
        curve = plan.curve([acceptance])
    if as_json:
        rate = {"acceptance": acceptance, "tokens_per_second": float(plan.tokens_per_second(acceptance))}
        print(json.dumps({"target": target, "draft": draft} | plan.as_dict() | rate | {"curve": curve.as_dict()}))
    else:
        out.print(plan, curve)


@app.command("hardware")
def hardware_(
    wafer: Annotated[str, typer.Argument(help="wse2 or wse3")] = "wse3",
    as_json: Json = False,
) -> None:
    """Every number of a wafer, with its unit, kind and source."""
    rows = hardware(wafer).sources()
    if as_json:
        print(json.dumps(rows))
        return
    table = Table("number", "value", "unit", "seen", "kind", "source")
    for r in rows:
        seen = "" if r["range"] is None else " to ".join(f"{n:,.4g}" for n in r["range"])
        table.add_row(r["name"], f"{r['value']:,.6g}", r["unit"], seen, r["kind"], r["source"])
    out.print(table)


def stored_as(network: Any, weights: str) -> Any:
    """The model with its weights stored as the option says."""
    from wsc.models import quantize

    bits = {"int8": 8, "int4": 4}
    if weights not in ("model", *bits):
        raise ArgumentError(f"weights is {weights!r}: it must be one of model, {', '.join(bits)}")
    return network if weights == "model" else quantize(network, bits[weights])


def config_of(model: str) -> Any:
    """A named config, or one read from a config.json or a folder that has it."""
    from pathlib import Path

    from wsc.models import LlamaConfig

    path = Path(model)
    if path.suffix == ".json" or path.is_dir():
        return LlamaConfig.from_json(path / "config.json" if path.is_dir() else path)
    return model


app.command()(train)
app.command()(stream)
app.command()(simulate)


def main() -> None:
    """Run the command; an error is one line and exit code 1, a wrong call exit code 2."""
    debug = "--debug" in sys.argv
    try:
        app()
    except WscError as error:
        if debug:
            raise
        err.print(f"wsc: {type(error).__name__}: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
