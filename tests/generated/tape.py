"""A tape of typed values from which programs are drawn, and how far rounding may carry each of them.

Every value knows a bound of its elements and, by forward error analysis, how far two correct programs may differ in
it. Values that are whole numbers below the dtype's last exact one do not round at all, in whatever order they are
added. A jump (floor, a comparison, argmax) of a value that may differ makes all that follows `loose`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

MOST = 600  # elements of a value
RANK = 5  # and dimensions
FLOATS = ("float32", "bfloat16", "float16")
INTS = ("int32", "uint32", "int8")
COMPLEX = "complex64"
# Twice the unit roundoff, and the first whole number whose successor cannot be told from it.
EPS = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10, COMPLEX: 2.0**-23}
# Bounds above which a value is scaled down: sums of products of two such stay below the dtype's largest number.
LARGE = {"float32": 512.0, "bfloat16": 512.0, "float16": 8.0, COMPLEX: 512.0}
EXACT = {"float32": 2.0**24, "bfloat16": 2.0**8, "float16": 2.0**11, COMPLEX: 2.0**24}


class Skip(Exception):
    """Nothing on the tape suits the op that was drawn: another is drawn."""


@dataclass(frozen=True, eq=False)
class Value:
    """An array of the program. `error` is how far it may differ: of its own, then for each loop around it, for each
    unit by which what the loop carries differs."""

    x: Any
    bound: float
    error: np.ndarray
    whole: bool = False
    loose: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape)

    @property
    def dtype(self) -> str:
        return self.x.dtype.name

    @property
    def rank(self) -> int:
        return self.x.ndim

    @property
    def size(self) -> int:
        return self.x.size

    @property
    def floats(self) -> bool:
        """Rounded by what is done to it."""
        return self.dtype in EPS


@lru_cache(maxsize=4096)
def _integers(low: int, high: int):
    return st.integers(low, high)


class Draw:
    """Choices, made by hypothesis so that a failing program shrinks."""

    def __init__(self, draw: Callable):
        self._draw = draw

    def number(self, low: int, high: int) -> int:
        return low if low >= high else self._draw(_integers(low, high))

    def choice(self, options: Sequence) -> Any:
        return options[self.number(0, len(options) - 1)]

    def chance(self, one_in: int) -> bool:
        return self.number(1, one_in) == one_in

    def some(self, options: Sequence, least: int = 0, most: int | None = None) -> list:
        """Different ones of the options, in any order."""
        left = list(options)
        count = self.number(min(least, len(left)), min(len(left), len(left) if most is None else most))
        return [left.pop(self.number(0, len(left) - 1)) for _ in range(count)]

    def permutation(self, n: int) -> tuple[int, ...]:
        return tuple(self.some(range(n), n))


class Store:
    """Arrays that a program's ops ask for as they are drawn: they become its weights or its constants. A program of
    `grids` has no weights, and works on whole arrays."""

    def __init__(self, grids: bool = False):
        self.grids = grids
        self.arrays: list[tuple[jax.Array, bool]] = []  # with whether it is a constant

    def add(self, array: np.ndarray, constant: bool) -> jax.Array:
        with jax.ensure_compile_time_eval():  # an array of its own, by which it is known among the constants of a trace
            made = jnp.asarray(array)
        self.arrays.append((made, constant or self.grids))
        return self.arrays[-1][0]


def array_of(shape: tuple[int, ...], dtype: str, seed: int, whole: bool) -> tuple[np.ndarray, float]:
    """Numbers of a dtype, and their bound: floats in [-2, 2], whole or not; integers that a sum does not wrap."""
    rng = np.random.default_rng([seed, *shape])
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool), 1.0
    if dtype in INTS:
        low, high = {"int32": (-50, 50), "uint32": (0, 100), "int8": (-20, 20)}[dtype]
        return rng.integers(low, high, shape).astype(dtype), float(high)
    if dtype == COMPLEX:
        parts = [rng.integers(-1, 2, shape) if whole else rng.uniform(-1, 1, shape) for _ in range(2)]
        return np.asarray(parts[0] + 1j * parts[1], COMPLEX), math.sqrt(2)
    values = rng.integers(-2, 3, shape) if whole else rng.uniform(-2, 2, shape)
    return np.asarray(values, jnp.dtype(dtype)), 2.0


class Tape:
    """Values so far; ops pick from it and put on it. `smooth` programs are differentiable, with no kink or jump."""

    def __init__(self, draw: Draw, store: Store, dims: Sequence[int], loops: int = 0, depth: int = 0, smooth=False):
        self.draw, self.store, self.dims = draw, store, dims
        self.loops, self.depth, self.smooth = loops, depth, smooth
        self.values: list[Value] = []

    def inside(self, loops: int = 0, smooth: bool | None = None) -> "Tape":
        """An empty tape of a sub-program of this one, `loops` more around it."""
        smooth = self.smooth if smooth is None else smooth
        return Tape(self.draw, self.store, self.dims, self.loops + loops, self.depth + 1, smooth)

    def exact(self) -> np.ndarray:
        return np.zeros(self.loops + 1)

    def pick(self, dtypes: Sequence[str] | None = None, where: Callable[[Value], bool] | None = None) -> Value:
        """A value of one of these dtypes for which `where` holds; the last one is the simplest choice."""
        found = [v for v in reversed(self.values) if dtypes is None or v.dtype in dtypes]
        found = [v for v in found if where is None or where(v)]
        if not found:
            raise Skip
        return self.draw.choice(found)

    def floating(self, where: Callable[[Value], bool] | None = None) -> Value:
        return self.pick(FLOATS, where)

    def made(self, shape: tuple[int, ...], dtype: str = "float32", bound: int | None = None) -> Value:
        """A new weight or constant; integers at most `bound` - 1 and at least 0, such as indices, where it is given."""
        whole = self.draw.chance(2)
        array, most = array_of(tuple(shape), dtype, len(self.store.arrays), whole)
        if bound is not None:
            array = (np.abs(array.astype(np.int64)) % bound).astype(dtype)
        return Value(self.store.add(array, self.draw.chance(4)), most, self.exact(), whole)

    def put(
        self, x: Any, *of: Value, bound: float | None = None, gains: float | Sequence[float] = 1.0,
        rounds: float = 1.0, whole: bool | None = None, jump: bool = False, keep: bool = True,
    ) -> Value:  # fmt: skip
        """Add a result of `of`. `bound` of its elements (by default the largest of theirs), `gains` by which errors of
        each operand may grow, `rounds` roundings of a value of that bound; none of these where numbers stay whole."""
        if x.size > MOST or x.ndim > RANK:
            raise Skip
        gains = [gains] * len(of) if isinstance(gains, int | float) else list(gains)
        bound = max((v.bound for v in of), default=1.0) if bound is None else float(bound)
        whole = all(v.whole for v in of if v.floats) if whole is None else whole
        error = sum((g * v.error for g, v in zip(gains, of, strict=True) if v.floats), self.exact())
        loose = any(v.loose for v in of) or (jump and any(v.error.any() for v in of))
        dtype = x.dtype.name
        if dtype not in EPS:
            return self._keep(Value(x, bound, self.exact(), False, loose), keep)
        if jump:
            error = self.exact()
        exact = whole and not error.any() and bound < EXACT[dtype]
        if not exact:
            whole = False
            error[0] += rounds * EPS[dtype] * (bound + 2.0**-12)  # of a small number, float16 keeps fewer digits
        if bound > LARGE[dtype] and not (exact and bound < EXACT[dtype] / 64):
            scale = 2.0 ** -np.ceil(np.log2(bound / 4))
            x, bound, error, whole = x * jnp.asarray(scale, x.dtype), bound * scale, error * scale, False
        return self._keep(Value(x, bound, error, whole, loose), keep)

    def _keep(self, value: Value, keep: bool) -> Value:
        if keep:
            self.values.append(value)
        return value

    def move(self, x: Any, *of: Value, **how: Any) -> Value:
        """Add a result whose elements are elements of `of`, as they are."""
        return self.put(x, *of, rounds=0, **how)

    def enter(self, value: Value, x: Any, carried: bool = False) -> Value:
        """A value of the tape around this one, as `x` inside; of a loop that carries it, its error is one unit."""
        error = np.append(value.error, np.zeros(self.loops + 1 - len(value.error)))
        if carried and value.floats:
            error = self.exact()
            error[-1] = 1.0
        return self._keep(replace(value, x=x, error=error, whole=value.whole and not carried), True)
