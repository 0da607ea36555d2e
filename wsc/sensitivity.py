"""Which number of the hardware matters most to a placed program, and what it would do on many other wafers."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from wsc.errors import ArgumentError
from wsc.machine.wafer import Wafer, may_be_zero
from wsc.runtime.executable import Executable
from wsc.tables import Printed


@dataclass(frozen=True, repr=False)
class Sensitivity(Printed):
    """How the time of one run follows each hardware number, the largest first.

    `rows` are (name, value, unit, elasticity): the time changes by elasticity percent for one percent more of the
    number, at the compiled placement. -1 for the clock means that everything is counted in cycles.
    """

    columns = 100
    rows: tuple[tuple[str, float, str, float], ...]
    conditions: str

    def as_dict(self) -> dict[str, float]:
        """Elasticity by name."""
        return {name: elasticity for name, _, _, elasticity in self.rows}

    def __rich__(self) -> Table:
        table = Table(title=f"What 1 % more of a number does to the time, modelled: {self.conditions}")
        table.add_column("hardware number")
        for name in ("value", "unit", "time"):
            table.add_column(name, justify="right" if name != "unit" else "left")
        for name, value, unit, elasticity in self.rows:
            if elasticity:
                table.add_row(name, f"{value:,.4g}", unit, f"{elasticity:+.3f} %")
        return table


def sensitivity(exe: Executable) -> Sensitivity:
    """Elasticities of the modelled time of `exe`, differentiated by JAX over every number of its wafer.

    >>> import jax.numpy as jnp, wsc
    >>> exe = wsc.compile(lambda w, x: x @ w, jnp.ones((64, 32)), jnp.ones((1, 64)), weight_argnums=0)
    >>> sensitivity(exe).as_dict()["clock_hz"] < 0               # a faster clock takes less time
    True
    """
    _check(exe)
    wafer = exe.program.wafer
    names = tuple(f.name for f in dataclasses.fields(Wafer) if f.name not in _COUNTED)
    values = {name: float(getattr(wafer, name)) for name in names}
    with jax.enable_x64(True):
        at = {n: jnp.asarray(v, jnp.float64) for n, v in values.items()}
        directions = dict(zip(names, jnp.eye(len(names), dtype=jnp.float64), strict=True))
        along = jax.vmap(lambda direction: jax.jvp(_seconds(exe, names), (at,), (direction,))[1])
        gradient = dict(zip(names, np.asarray(jax.jit(along)(directions)), strict=True))
    whole = exe.telemetry.seconds or 1.0
    units = {f.name: f.metadata["unit"] for f in dataclasses.fields(Wafer) if f.name in values}
    rows = [(n, v, units[n], float(gradient[n]) * v / whole) for n, v in values.items()]
    rows.sort(key=lambda row: (-abs(row[3]), row[0]))
    return Sensitivity(tuple(rows), f"{exe.program.wafers} x {wafer.name}, {exe.program.conditions}")


def sweep(exe: Executable, **numbers: Any) -> np.ndarray:
    """Modelled seconds of one run for many wafers: each keyword is a hardware number with an array of n values, all of
    one length. Placement, layouts and algorithms stay as compiled. Returns n seconds.

    Raises ArgumentError for a name that is no hardware number, one that only placement reads, or unequal lengths.

    >>> import jax.numpy as jnp, wsc
    >>> exe = wsc.compile(lambda w, x: x @ w, jnp.ones((64, 32)), jnp.ones((1, 64)), weight_argnums=0)
    >>> sweep(exe, hop_cycles=[1, 2, 4]).shape
    (3,)
    """
    known = {f.name for f in dataclasses.fields(Wafer)} - _COUNTED
    if not numbers or set(numbers) - known:
        wrong = sorted(set(numbers) - known) or ["nothing"]
        raise ArgumentError(
            f"a sweep over {', '.join(wrong)}: it must be over one or more of {', '.join(sorted(known))} "
            f"(other numbers decide the placement: compile again for them)"
        )
    _check(exe)
    try:
        arrays = {name: np.asarray(values, np.float64) for name, values in numbers.items()}
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"a sweep over what are not numbers: {error}") from error
    if len({a.shape for a in arrays.values()}) > 1 or any(a.ndim != 1 for a in arrays.values()):
        raise ArgumentError(
            f"a sweep over arrays of shapes {[a.shape for a in arrays.values()]}: each must be [n], with one n for all"
        )
    for name, a in arrays.items():
        if not np.isfinite(a).all() or (a < 0).any() or (not may_be_zero(name) and (a == 0).any()):
            least = "at least 0" if may_be_zero(name) else "above 0"
            raise ArgumentError(f"a sweep over {name} of {a.min()} to {a.max()}: all must be finite and {least}")
    with jax.enable_x64(True):
        return np.asarray(jax.jit(jax.vmap(_seconds(exe, tuple(arrays))))(arrays))


# Numbers that the compiled program has used up: where things lie, not how long they take.
_COUNTED = {
    "name", "defects", "columns", "rows", "sram_bytes", "code_bytes", "align_bytes", "wavelet_bytes", "colors",
    "switch_positions",
    "sram_bytes_per_cycle", "idle_watts", "busy_watts", "pe_joules_per_cycle", "hop_joules_per_bit",
    "dollars_per_hour", "fabric_inputs",
}  # fmt: skip


def _check(exe: Any) -> None:
    if not isinstance(exe, Executable):
        raise ArgumentError(f"{type(exe).__name__} is no compiled program: give what wsc.compile returned")


def _seconds(exe: Executable, names: tuple[str, ...]) -> Callable[[dict], Any]:
    return lambda values: exe.seconds_on(dataclasses.replace(exe.program.wafer, **{n: values[n] for n in names}))
