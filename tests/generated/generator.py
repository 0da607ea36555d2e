"""Random JAX programs, typed and small: `programs()` is a hypothesis strategy of them."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import arithmetic
import complexes
import grids
import jax
import jax.extend.core as jex
import movement
import nesting
import numpy as np
import training
from hypothesis import reject
from hypothesis import strategies as st
from jax import lax
from tape import COMPLEX, FLOATS, INTS, MOST, Draw, Skip, Store, Tape, Value, array_of

OPS = arithmetic.FAMILIES + movement.FAMILIES
ROUGH = arithmetic.ROUGH * 2 + movement.ROUGH
DIMS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 16, 17, 24, 33, 40)


@dataclass(frozen=True)
class Program:
    """A drawn program: `fn(weights, *inputs)` and its arguments, its jaxpr, and for each result its bound, by how much
    two correct programs may differ in it, and whether a jump makes it any value at all. One that `trains` is
    `fn(parameters, moments, *inputs)`, and returns new ones first."""

    fn: Callable
    args: tuple
    jaxpr: jex.ClosedJaxpr
    outs: tuple[tuple[float, float, bool], ...]
    trains: bool = False

    def __repr__(self) -> str:
        kind = "training step" if self.trains else "program"
        return f"{kind} of {len(self.args[0])} weights first: {self.jaxpr}"


def grow(tape: Tape, count: int) -> None:
    """Draw `count` ops onto a tape; one for which the tape has nothing is left out."""
    for _ in range(count):
        kind = tape.draw.number(1, 30)
        families = grids.FAMILIES if tape.store.grids and not tape.smooth else OPS
        if kind > 24 and tape.depth < nesting.DEPTH:
            families = nesting.FAMILIES
        elif kind > 16 and not tape.smooth:
            families = movement.RARE if kind in (21, 22) else complexes.FAMILIES if kind in (23, 24) else ROUGH
        op = tape.draw.choice(families)
        length = len(tape.values)
        try:
            op(tape, grow) if families is nesting.FAMILIES else op(tape)
        except Skip:
            del tape.values[length:]


def _inputs(draw: Draw, dims: list[int]) -> tuple[list[Value], list[np.ndarray]]:
    """What a program is called with: a float array first, then any; of them the int32 serve as places."""
    values, arrays = [], []
    kinds = [draw.choice(FLOATS if draw.chance(3) else FLOATS[:1])]
    kinds += [draw.choice((*FLOATS, *INTS, "int32", "bool", "float32", COMPLEX)) for _ in range(draw.number(0, 3))]
    for i, dtype in enumerate(kinds):
        rank = draw.choice([2, 1, 3, 0, 4] if i else [2, 3, 1, 2])
        shape: tuple[int, ...] = ()
        for _ in range(rank):
            n = draw.choice(dims)
            shape += (n if np.prod(shape) * n <= MOST else 1,)
        if dtype == "uint32" and draw.chance(2):
            shape = (2,)  # a key
        if draw.chance(40):
            shape = (*shape, 0)[-3:]
        whole = draw.chance(2)
        array, bound = array_of(shape, dtype, 1000 + i, whole)
        arrays.append(array)
        values.append(Value(array, bound, np.zeros(1), whole))
    return values, arrays


def _grids(draw: Draw) -> tuple[list[Value], list[np.ndarray]]:
    """Arrays of rank 1 to 3 and of nearly one size, and sometimes a place."""
    size = draw.choice([(9, 8), (16, 12), (5, 24), (6, 7, 8), (4, 12, 9), (12, 4, 3), (40,), (8, 8)])
    values, arrays = [], []
    for i in range(draw.number(1, 3)):
        less = draw.choice([0, 0, 1, 2, 4]) if i else 0
        shape = tuple(max(1, n - less) for n in size)[draw.number(0, len(size) - 1) if draw.chance(5) else 0 :]
        whole = draw.chance(2)
        array, bound = array_of(shape, draw.choice(FLOATS) if draw.chance(4) else "float32", 2000 + i, whole)
        arrays.append(array)
        values.append(Value(array, bound, np.zeros(1), whole))
    if draw.chance(2):
        arrays.append(np.asarray(draw.number(0, 7), np.int32))
        values.append(Value(arrays[-1], 7, np.zeros(1)))
    return values, arrays


def _training_step(draw: Draw, store: Store, dims, inputs: list[Value], arrays: list[np.ndarray]) -> Program:
    tape = Tape(draw, store, dims)
    for value, x in zip(inputs, arrays, strict=True):
        tape.enter(value, x)
    try:
        step, trees, told = training.drawn(tape, grow)
    except Skip:
        reject()
    args = (*trees, *arrays)
    return Program(step, args, jax.make_jaxpr(step)(*args), tuple(told), trains=True)


@st.composite
def programs(draw_from, least: int = 2, most: int = 8) -> Program:
    """Programs of so many ops, each of which may hold a sub-program."""
    draw = Draw(draw_from)
    kind = draw.number(1, 12)
    store, dims = Store(grids=kind > 9), [draw.choice(DIMS) for _ in range(3)]
    inputs, arrays = _grids(draw) if store.grids else _inputs(draw, [*dims, 1])
    if kind == 9:
        return _training_step(draw, store, dims, inputs, arrays)
    outs: list[Value] = []

    def trace(*args):
        tape = Tape(draw, store, dims)
        for value, x in zip(inputs, args, strict=True):
            tape.enter(value, x)
        grow(tape, draw.number(least, most))
        outs[:] = [tape.values[-1], *(tape.pick() for _ in range(draw.number(0, 2)))]
        if draw.chance(4):
            with contextlib.suppress(Skip):
                outs.append(_written(tape, len(args)))
        return [o.x for o in outs]

    closed = jax.make_jaxpr(trace)(*arrays)
    weights = [i for i, c in enumerate(closed.consts) if any(c is a and not kept for a, kept in store.arrays)]

    def fn(ws, *args):
        consts = list(closed.consts)
        for i, w in zip(weights, ws, strict=True):
            consts[i] = w
        return jex.jaxpr_as_fun(jex.ClosedJaxpr(closed.jaxpr, consts))(*args)

    told = tuple((o.bound, float(o.error[0]), o.loose) for o in outs)
    return Program(fn, ([closed.consts[i] for i in weights], *arrays), closed, told)


def _written(tape: Tape, inputs: int) -> Value:
    """State: an argument that comes back with a value of the program written into it."""
    state = tape.draw.choice([v for v in tape.values[:inputs] if v.rank] or tape.values[:1])

    def suits(v: Value) -> bool:
        fits = v.rank == state.rank and all(a <= b for a, b in zip(v.shape, state.shape, strict=True))
        return fits and v.size > 0

    update = tape.pick((state.dtype,), suits)
    room = [b - a for a, b in zip(update.shape, state.shape, strict=True)]
    places = [movement.place(tape, n + 1) if n else None for n in room]
    at = [0 if p is None else p.x for p in places]
    return tape.move(
        lax.dynamic_update_slice(state.x, update.x, at), state, update, *(p for p in places if p is not None)
    )
