"""`wsc train`: a Llama of bytes, trained through the same step that is placed on the wafer."""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from wsc.cli_options import Json, Order, Wafer, Wafers, err, hardware, out, waiting
from wsc.errors import ArgumentError

PROMPT = "The "


def train(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="where the model and its checkpoints go")] = Path(
        "trained"
    ),
    steps: Annotated[int, typer.Option(min=1, help="steps in all, those of earlier runs counted")] = 200,
    layers: Annotated[int | None, typer.Option(help="layers; 4")] = None,
    hidden: Annotated[int | None, typer.Option(help="width; 128")] = None,
    heads: Annotated[int | None, typer.Option(help="attention heads; 4")] = None,
    batch: Annotated[int | None, typer.Option(help="texts a step; 4")] = None,
    sequence: Annotated[int | None, typer.Option(help="bytes read of each; 64")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="learning rate at its highest; 0.003")] = None,
    schedule: Annotated[
        int | None, typer.Option(help="steps until the learning rate is down to a tenth; as --steps")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="of the first weights and the order of the text; 0")] = None,
    text: Annotated[Path | None, typer.Option(help="a file to learn; Python's own help topics")] = None,
    save_every: Annotated[int, typer.Option(min=1, help="steps between checkpoints")] = 50,
    resume: Annotated[bool, typer.Option(help="go on from the newest checkpoint in OUT, bit for bit")] = True,
    wafer: Wafer = "wse3",
    wafers: Wafers = None,
    order: Order = "xla",
    as_json: Json = False,
) -> None:
    """Train a small byte-level Llama, save it as a folder that wsc run takes, and account for the wafer's work.

    A training that is resumed keeps its sizes, rates and seed: they need not be told again.
    """
    options = {
        "layers": layers,
        "hidden": hidden,
        "heads": heads,
        "batch": batch,
        "sequence": sequence,
        "learning_rate": learning_rate,
        "schedule": schedule,
        "seed": seed,
    }
    given = {name: value for name, value in options.items() if value is not None}
    _refuse_foreign(folder)
    placed = Placed(hardware(wafer), wafers, order)
    trainer, begun = _trainer(folder, text, resume, steps, given, placed)
    losses, seconds = _take_steps(trainer, folder, steps, save_every, anew=not resume)
    from wsc.models.bytes import byte_tokenizer
    from wsc.models.huggingface import write

    with waiting("examining it on the part of the text that was held out"):
        bits = trainer.examine()
    write(folder, trainer.model, byte_tokenizer())
    later = seconds[1:]  # the first step waited for XLA
    speed = trainer.recipe.tokens * len(later) / sum(later) if later else None
    found = {
        "out": str(folder),
        "resumed_from": begun,
        "step": trainer.step,
        "parameters": trainer.recipe.config.parameters,
        "recipe": dataclasses.asdict(trainer.recipe),
        "losses": losses,
        "held_out_bits_per_byte": bits,
        "measured_on_this_computer": {"tokens_per_second": speed},
        "modelled": placed.figures(trainer.recipe.tokens),
    }
    print(json.dumps(found)) if as_json else _show(found)


@dataclass
class Placed:
    """The training step as it is placed on a wafer: made by `compile_step` when the trainer asks for it."""

    wafer: Any
    wafers: int | None
    order: str
    exe: Any = None

    def compile_step(self, step: Any, *args: Any) -> Any:
        """The function that takes a step: of (model, optimizer, batch), updated in place, to the loss."""
        import wsc

        exe = self.exe = wsc.compile(step, *args, wafer=self.wafer, wafers=self.wafers, order=self.order)
        return lambda *args: exe(*args)[0]

    def figures(self, tokens: int) -> dict[str, Any] | None:
        """What a step of so many tokens takes on the wafer."""
        if self.exe is None:
            return None
        cost = self.exe.cost_analysis()
        rate = tokens / cost["seconds"]
        return {"conditions": self.exe.conditions, **cost, "tokens_per_second": rate}


def _refuse_foreign(folder: Path) -> None:
    """ArgumentError when the folder holds a model that was not trained here."""
    foreign = [f.name for f in (folder / "config.json", *folder.glob("*.safetensors")) if f.is_file()]
    if folder.exists() and not folder.is_dir():
        raise ArgumentError(f"{folder} is a file: give a folder to train into")
    if foreign and not (folder / "checkpoints").is_dir():
        raise ArgumentError(f"{folder} holds {foreign[0]} of a model that was not trained there: give another folder")


def _trainer(
    folder: Path, file: Path | None, resume: bool, steps: int, given: dict[str, Any], placed: Placed
) -> tuple[Any, int]:
    """The trainer, new or as it was saved, and the step at which it stands."""
    from wsc.models import training, training_state
    from wsc.models.bytes import tokens_of, topics

    saved = training_state.latest(folder / "checkpoints") if resume else None
    text = training.Text(tokens_of(topics() if file is None else [_read(file)]))
    recipe = dataclasses.replace(saved.recipe if saved else training.Recipe(schedule=steps), **given)
    with waiting("placing the training step on the wafer"):
        if saved is None:
            return training.Trainer(recipe, text, compiled=placed.compile_step), 0
        return training_state.resume(saved, text, recipe, placed.compile_step), saved.step


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ArgumentError(f"cannot read {path} as text in UTF-8 ({e}); give another file") from e


def _take_steps(trainer: Any, folder: Path, steps: int, save_every: int, anew: bool) -> tuple[list[float], list[float]]:
    """The losses of the steps up to number `steps`, and the seconds that each took; saves on the way."""
    from wsc.models import training_state

    losses: list[float] = []
    seconds: list[float] = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=err, disable=not err.is_terminal) as bar:
        task = bar.add_task("compiling for this computer", total=max(steps, trainer.step), completed=trainer.step)
        begin = time.perf_counter()
        for loss in trainer.run(steps):
            losses.append(loss)
            seconds.append(time.perf_counter() - begin)
            bar.update(task, advance=1, description=f"loss {loss:.3f}")
            if trainer.step % save_every == 0 or trainer.step == steps:
                training_state.save(folder / "checkpoints", trainer, anew)
                anew = False
            begin = time.perf_counter()
    return losses, seconds


def _show(found: dict[str, Any]) -> None:
    recipe, losses = found["recipe"], found["losses"]
    table = Table("figure", "value", title=f"Trained: a Llama of {found['parameters']:,} parameters, float32")
    table.columns[1].justify = "right"
    begun = f", resumed at {found['resumed_from']}" if found["resumed_from"] else ""
    table.add_row(f"steps of {recipe['batch']} x {recipe['sequence']} bytes{begun}", f"{found['step']:,}")
    if losses:
        table.add_row("loss of the first and the last step, nats", f"{losses[0]:.3f}, {losses[-1]:.3f}")
    table.add_row("held-out text, bits a byte", f"{found['held_out_bits_per_byte']:.3f}")
    out.print(table)
    modelled = found["modelled"]
    if modelled is not None:
        placed = Table("figure", "value", "unit", title=f"Modelled: {modelled['conditions']}")
        placed.columns[1].justify = "right"
        placed.add_row("time of one step", f"{modelled['seconds'] * 1e6:,.1f}", "us")
        placed.add_row("cycles of one step", f"{modelled['cycles']:,.0f}", "cycles")
        placed.add_row("tokens learned from per second", f"{modelled['tokens_per_second']:,.0f}", "1/s")
        out.print(placed)
    speed = found["measured_on_this_computer"]["tokens_per_second"]
    if speed:
        out.print(f"This computer, measured: {speed:,.0f} tokens/s.")
    command = f'wsc run --model {found["out"]} --context {recipe["sequence"]} "{PROMPT}"'
    out.print(f"Let it speak: {command}", markup=False, highlight=False, soft_wrap=True)
