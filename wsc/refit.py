"""Fit the fitted constants of the machine model again, and see how far they carry to a model that was left out."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Group
from rich.table import Table

from wsc.machine import baselines
from wsc.machine.published import MEASUREMENTS, Measurement
from wsc.machine.wafer import WSE2, Wafer
from wsc.runtime.telemetry import Telemetry
from wsc.tables import Printed
from wsc.validate import decode_bytes, timed_layer

# Constants of WSE-2 that were fitted, with the group of rows they were fitted to.
FITTED = {"transcendental_cycles": "decode"}


@dataclass(frozen=True, repr=False)
class Refit(Printed):
    """Constants fitted anew: by name (in the code, found), residuals of the rows in percent, and what the rows of one
    model would miss by if only the other models had been fitted, in percent."""

    constants: dict[str, tuple[float, float]]
    residuals: dict[str, float]
    left_out: dict[str, dict[str, float]]

    @property
    def worst_left_out(self) -> float:
        """The largest absolute error of a row whose model was left out, in percent."""
        return max(abs(e) for errors in self.left_out.values() for e in errors.values())

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return dataclasses.asdict(self) | {"worst_left_out_percent": self.worst_left_out}

    def __rich__(self) -> Group:
        constants = Table("constant", "in the code", "fitted", title="Fitted constants")
        for name, (now, found) in self.constants.items():
            constants.add_row(name, f"{now:.2f}", f"{found:.2f}")
        rows = Table("row", "residual", "with its model left out", title="Residuals, percent")
        for what, residual in self.residuals.items():
            apart = next(errors[what] for errors in self.left_out.values() if what in errors)
            rows.add_row(what, f"{residual:+.2f}", f"{apart:+.2f}")
        return Group(constants, rows)


def refit() -> Refit:
    """Fit the fitted constants again: least squares of relative errors over the decode rows, and once more for each
    model left out. Prefill has no fitted constant of its own: all its rows are held out."""
    names = tuple(FITTED)
    rows = [m for m in MEASUREMENTS if m.group in FITTED.values()]
    models = dict.fromkeys(m.setting[1] for m in rows)
    constants, residuals = _fit(names, rows, rows)
    left_out = {}
    for model in models:
        others, own = ([m for m in rows if (m.setting[1] == model) == mine] for mine in (False, True))
        left_out[model] = _fit(names, others, own)[1]
    now = {n: (float(getattr(WSE2, n)), float(v)) for n, v in zip(names, constants, strict=True)}
    found = baselines.fit_gpu([(*decode_bytes(m.setting[4]), m.setting[3], m.value) for m in MEASUREMENTS if _gpu(m)])
    now["efficiency of an H100"] = baselines.H100.efficiency, found[0]
    now["us a sequence of an H100"] = 1e6 * baselines.H100.sequence_seconds, 1e6 * found[1]
    return Refit(now, residuals, left_out)


def _gpu(m: Measurement) -> bool:
    return m.group == "GPUs" and "efficiency" in m.fits


def _fit(
    names: tuple[str, ...], rows: list[Measurement], told: list[Measurement]
) -> tuple[np.ndarray, dict[str, float]]:
    """Gauss-Newton on relative errors of `rows` with JAX's derivatives; the errors of `told` with what was found."""

    def errors(constants: Any, of: list[Measurement]) -> Any:
        wafer = dataclasses.replace(WSE2, **dict(zip(names, constants, strict=True)))
        return jnp.stack([_on(timed_layer(*m.setting), wafer) / m.value - 1 for m in of])

    with jax.enable_x64(True):
        at = jnp.asarray([float(getattr(WSE2, n)) for n in names])
        for _ in range(4):
            slope, now = jax.jacfwd(errors)(at, rows), errors(at, rows)
            at = jnp.maximum(at - jnp.linalg.lstsq(slope, now)[0], 0.0)
        found = errors(at, told)
    return np.asarray(at), {m.what: 100 * float(e) for m, e in zip(told, found, strict=True)}


def _on(telemetry: Telemetry, wafer: Wafer) -> Any:
    """Cycles of the layer on another wafer."""
    return Telemetry(dataclasses.replace(telemetry.program, wafer=wafer)).cycles_per_layer
