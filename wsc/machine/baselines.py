"""What a user would run instead of a wafer: decode speed of GPUs and of another SRAM chip, as closed forms.

A *step* gives every user of the batch one token. Bytes and flops are of the whole model, seconds of one step.
Kinds of number as in `wsc.machine.wafer`. Watts are ratings of the chips alone, hosts and cooling not counted.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from wsc.errors import ArgumentError
from wsc.machine.numbers import maximum, plain, where
from wsc.machine.wafer import Wafer, number

_RENT = "middle of cloud list prices an hour, early 2026; no one source"
_CARRIED = "the H100's, fitted there to six published rows"
_SYNC = "the A100's, fitted there to one published row"

# Where a chip differs from the H100, whose numbers are the defaults of the class: value, kind, source.
_OTHERS: dict[str, dict[str, tuple[float, str, str]]] = {
    "H200": {
        "memory_bytes": (141e9, "published", "vendor datasheet, H200 SXM: 141 GB HBM3e"),
        "bytes_per_second": (4.8e12, "published", "vendor datasheet, H200 SXM"),
        "flops": (989e12, "published", "vendor datasheet, H200 SXM: bf16, dense"),
        "watts": (700.0, "published", "vendor datasheet, H200 SXM: most it may draw"),
        "dollars_per_hour": (3.8, "assumed", _RENT),
        "efficiency": (0.63, "assumed", _CARRIED),
        "sequence_seconds": (60e-6, "assumed", _CARRIED),
        "sync_seconds": (34e-6, "assumed", _SYNC),
    },
    "A100": {
        "memory_bytes": (80e9, "published", "vendor datasheet, A100 80GB SXM: HBM2e"),
        "bytes_per_second": (2.039e12, "published", "vendor datasheet, A100 80GB SXM"),
        "flops": (312e12, "published", "vendor datasheet, A100: bf16, dense"),
        "watts": (400.0, "published", "vendor datasheet, A100 80GB SXM; WaferLLM takes it too"),
        "dollars_per_hour": (1.8, "assumed", _RENT),
        "efficiency": (0.63, "assumed", f"{_CARRIED}; WaferLLM's row of one A100 agrees within 3 %"),
        "sequence_seconds": (60e-6, "assumed", _CARRIED),
        "sync_seconds": (
            34e-6,
            "fitted",
            "WaferLLM's row of 8 x A100, 260.4 tokens/s on 8B: it holds all that did not scale",
        ),
    },
    "B200": {
        "memory_bytes": (
            180e9,
            "published",
            "vendor datasheet, DGX B200: 1,440 GB in 8; the chip alone is sold as 192",
        ),
        "bytes_per_second": (8e12, "published", "vendor datasheet, DGX B200: 64 TB/s in 8"),
        "flops": (2.25e15, "published", "vendor datasheet, HGX B200: bf16, half of what it gives with sparsity"),
        "watts": (1000.0, "published", "vendor datasheet, HGX B200: most it may draw"),
        "dollars_per_hour": (5.0, "assumed", _RENT),
        "efficiency": (0.63, "assumed", _CARRIED),
        "sequence_seconds": (60e-6, "assumed", _CARRIED),
        "sync_seconds": (34e-6, "assumed", _SYNC),
    },
    "Groq LPU": {
        "memory_bytes": (230e6, "published", "vendor text: 230 MB SRAM, all there is"),
        "bytes_per_second": (80e12, "published", "vendor text: SRAM of one chip"),
        "flops": (188e12, "published", "vendor text: fp16; int8 is 750e12"),
        "watts": (300.0, "published", "the chip at its launch, as the press reported it"),
        "dollars_per_hour": (0.8, "assumed", "none is rented: a card at about $20,000, over three years"),
        "efficiency": (
            0.077,
            "fitted",
            "one row: 751 tokens/s on Llama-3.1-8B, 8-bit weights, context taken as 1,536; it holds all waiting "
            "between chips too, so it fits models of that size: 70B comes out at 87 where 300 are published",
        ),
        "sequence_seconds": (0.0, "assumed", "lies in the efficiency: one row cannot tell the two apart"),
        "sync_seconds": (0.0, "assumed", "chips stand one after the other and reduce nothing together"),
    },
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Accelerator:
    """One chip a user could rent. Make another with `dataclasses.replace(H100, dollars_per_hour=2.0)`.

    >>> A100.memory_bytes, H200.bytes_per_second / H100.bytes_per_second
    (80000000000.0, 1.4328358208955223)
    >>> [(row["kind"], row["source"]) for row in H200.sources() if row["name"] == "flops"]
    [('published', 'vendor datasheet, H200 SXM: bf16, dense')]
    """

    name: str = field(default="custom", metadata={"static": True})
    memory_bytes: float = number(80e9, "B", "published", "vendor datasheet, H100 SXM: HBM3")
    bytes_per_second: float = number(3.35e12, "B/s", "published", "vendor datasheet, H100 SXM: peak of HBM3")
    flops: float = number(989e12, "1/s", "published", "vendor datasheet, H100 SXM: bf16, dense")
    watts: float = number(700.0, "W", "published", "vendor datasheet, H100 SXM: most it may draw")
    dollars_per_hour: float = number(2.95, "$/h", "published", "median of cloud list prices, which go from 1.5 to 5")
    efficiency: float = number(
        0.63, "1", "fitted", "share of bytes_per_second: vLLM and TensorRT-LLM on 8B, batch 1, 16, 32: `fit_gpu`"
    )
    sequence_seconds: float = number(
        60e-6, "s", "fitted", "a step and sequence, sampling and scheduling: the same six rows, `fit_gpu`"
    )
    sync_seconds: float = number(34e-6, "s", "assumed", f"one all-reduce between chips: {_SYNC}")
    pipelined: bool = field(default=False, metadata={"static": True})  # chips one after the other, not side by side

    def __post_init__(self):
        """Refuse plain numbers that no chip has; tracers and the like pass, so that JAX can work over hardware."""
        for f in fields(self):
            value = getattr(self, f.name)
            if "unit" in f.metadata and isinstance(value, Real):
                _check(f"{f.name} of {self.name}", value, above=f.name not in ("sequence_seconds", "sync_seconds"))
        if isinstance(self.efficiency, Real) and self.efficiency > 1:
            raise ArgumentError(f"efficiency of {self.name} is {self.efficiency!r}: it is a share, at most 1")

    def sources(self) -> list[dict]:
        """Every number with its unit, kind and source, one dict a row; a number that was replaced says so."""
        rows = []
        for f in fields(self):
            if "unit" not in f.metadata:
                continue
            value = getattr(self, f.name)
            default = (f.default, f.metadata["kind"], f.metadata["source"])
            known, kind, source = _OTHERS.get(self.name, {}).get(f.name, default)
            if value != known:
                kind, source = "assumed", "set by whoever made this value"
            rows.append({"name": f.name, "value": value, "unit": f.metadata["unit"], "kind": kind, "source": source})
        return rows


def _known(name: str, **more: Any) -> Accelerator:
    numbers: dict[str, Any] = {key: value for key, (value, _, _) in _OTHERS[name].items()}
    return Accelerator(name=name, **numbers, **more)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Serving:
    """A model being served: what each user sees and what it costs. One row of a table, whatever the machine.

    Power is the rating and is drawn all the time; money is rent, with no hour unused.
    """

    name: str = field(metadata={"static": True})
    chips: float  # chips or wafers that take part
    batch: float  # users served at once
    seconds: float  # s, one step: one token for every user
    watts: float  # W, all chips
    dollars_per_hour: float  # $/h, all chips

    @property
    def tokens_per_second_per_user(self) -> float:
        """What one user sees."""
        return 1 / self.seconds

    @property
    def tokens_per_second(self) -> float:
        """All users together."""
        return self.batch / self.seconds

    @property
    def tokens_per_joule(self) -> float:
        """Tokens of all users for a joule."""
        return self.tokens_per_second / self.watts

    @property
    def dollars_per_million_tokens(self) -> float:
        """Rent for a million decoded tokens."""
        return self.dollars_per_hour / 3600 * 1e6 / self.tokens_per_second


def decode(
    accelerator: Accelerator,
    weight_bytes: float,
    kv_bytes: float,
    flops: float,
    batch: float,
    chips: float | None = 1,
    layers: float = 0,
) -> Serving:
    """One decode step of `batch` users: the slower of memory and arithmetic, then what each sequence adds.

    The weights are read once a step, `kv_bytes` of cache and `flops` once for every user; two all-reduces a layer
    where several chips stand side by side. On a pipelined machine the batch goes through the chips one by one, so time
    is that of one chip reading everything and the total over users is a lower bound: other batches could follow.
    `chips=None` takes `chips_needed`; any other number is taken as it is, whether or not the model fits.

    >>> s = decode(H100, weight_bytes=16.06e9, kv_bytes=1536 * 131072, flops=15e9, batch=16)   # Llama-3-8B
    >>> round(s.tokens_per_second_per_user), round(s.tokens_per_second), round(s.dollars_per_million_tokens, 2)
    (99, 1585, 0.52)
    """
    named = {"weight_bytes": weight_bytes, "kv_bytes": kv_bytes, "flops": flops, "layers": layers, "batch": batch}
    for name, value in named.items():
        _check(name, value, above=name in ("weight_bytes", "batch"), whole=name in ("layers", "batch"))
    if chips is None:
        chips = chips_needed(accelerator, weight_bytes, kv_bytes, batch)
    _check("chips", chips, above=True, whole=True)
    # Floats from here on: a product of bytes overflows the 32-bit integers of a traced batch.
    weight_bytes, kv_bytes, flops, layers, users = map(_float, (weight_bytes, kv_bytes, flops, layers, batch))
    width = 1.0 if accelerator.pipelined else _float(chips)
    memory = (weight_bytes + users * kv_bytes) / (accelerator.efficiency * accelerator.bytes_per_second * width)
    arithmetic = flops * users / (accelerator.flops * width)
    sync = where(width > 1, 2 * layers * accelerator.sync_seconds, 0.0)
    return Serving(
        name=accelerator.name,
        chips=chips,
        batch=batch,
        seconds=maximum(memory, arithmetic) + users * accelerator.sequence_seconds + sync,
        watts=accelerator.watts * _float(chips),
        dollars_per_hour=accelerator.dollars_per_hour * _float(chips),
    )


def chips_needed(accelerator: Accelerator, weight_bytes: float, kv_bytes: float = 0.0, batch: float = 1) -> int:
    """The fewest chips whose memory holds the weights and `kv_bytes` of cache for each of `batch` users.

    >>> chips_needed(H100, 141e9), chips_needed(GROQ_LPU, 8.03e9)   # 70B in bf16, 8B in 8 bits
    (2, 35)
    """
    _check("weight_bytes", weight_bytes, above=True)
    _check("kv_bytes", kv_bytes)
    _check("batch", batch, above=True, whole=True)
    share = (_float(weight_bytes) + _float(kv_bytes) * _float(batch)) / accelerator.memory_bytes
    count: Any = math.ceil(share) if plain(share) else jnp.ceil(share)
    return count


def of_wafer(wafer: Wafer, seconds: float, batch: float, wafers: float = 1) -> Serving:
    """Wafers in the same table: modelled `seconds` a step for `batch` users. Watts are those of whole busy systems.

    >>> from wsc.machine.wafer import WSE3
    >>> round(of_wafer(WSE3, seconds=1 / 1800, batch=1).tokens_per_joule, 3)   # 8B, one user
    0.078
    """
    _check("seconds", seconds, above=True)
    _check("batch", batch, above=True, whole=True)
    _check("wafers", wafers, above=True, whole=True)
    share = _float(wafers)
    return Serving(wafer.name, wafers, batch, seconds, wafer.busy_watts * share, wafer.dollars_per_hour * share)


def fit_gpu(
    rows: Iterable[tuple[float, float, float, float]], bytes_per_second: float = 3.35e12
) -> tuple[float, float]:
    """`(efficiency, sequence_seconds)` of one chip: least squares of the relative errors in time.

    A row is weight bytes, bytes of cache a user, batch, and measured tokens/s of one user. Memory is taken to be the
    slower part in every row. The constants of `H100` come from six such rows, its bandwidth being the default.

    >>> efficiency, seconds = fit_gpu([(16e9, 0.2e9, 1, 130.0), (16e9, 0.2e9, 32, 80.0)])
    >>> round(efficiency, 2), round(seconds * 1e6)
    (0.63, 61)
    """
    _check("bytes_per_second", bytes_per_second, above=True)
    try:
        given = list(rows)
        table = np.array(given, dtype=float).reshape(len(given), 4)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"fit_gpu got rows that are not four numbers each: {error}") from error
    if not np.all(np.isfinite(table)) or np.any(table < 0) or np.any(table[:, [0, 2, 3]] == 0):
        raise ArgumentError("fit_gpu got a row that is not weight bytes, cache bytes, batch, tokens/s, all above 0")
    weights, cache, batch, speed = table.T
    columns = np.stack([(weights + batch * cache) / bytes_per_second, batch], axis=1) * speed[:, None]
    (slowdown, sequence_seconds), _, rank, _ = np.linalg.lstsq(columns, np.ones(len(table)))
    if rank < 2 or slowdown <= 0 or sequence_seconds < 0:
        raise ArgumentError(
            "these rows do not tell efficiency from sequence_seconds: give at least two batches, the larger one slower"
        )
    return float(1 / slowdown), float(sequence_seconds)


def _float(value: Any) -> Any:
    return float(value) if isinstance(value, Real) else value * 1.0


def _check(name: str, value: Any, above: bool = False, whole: bool = False) -> None:
    """Refuse what is not a finite number of at least 0, or above it, or whole, arrays by their worst; tracers pass."""
    if isinstance(value, Tracer):
        return
    if isinstance(value, jax.Array | np.ndarray) and value.size and np.issubdtype(value.dtype, np.number):
        value = float(np.min(value)) if np.isfinite(np.asarray(value)).all() else math.nan
    amount = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not math.isfinite(amount):
        raise ArgumentError(f"{name} is {value!r}: it must be a finite number")
    if amount < 0 or (above and amount == 0) or (whole and amount != int(amount)):
        raise ArgumentError(
            f"{name} is {value!r}: it must be {'whole and ' * whole}{'above' if above else 'at least'} 0"
        )


H100 = Accelerator(name="H100")
H200 = _known("H200")
A100 = _known("A100")
B200 = _known("B200")
GROQ_LPU = _known("Groq LPU", pipelined=True)
ACCELERATORS = {"h100": H100, "h200": H200, "a100": A100, "b200": B200, "groq": GROQ_LPU}
