"""What a wafer does of a training step while weights stream: a layer forward, the same layer backward, the head.

A wafer works as equal bands of rows, each with sequences of its own; a band is compiled, and all do the same at the
same time. On a band activations lie with features along `y` and tokens along `x`, weights pass over them (see
`wsc.lowering.rules.streamed`). Backward computes the layer again from its input, then the gradients of its weights and
of its input. What a band sums of a weight's gradient is summed over the bands before it leaves the wafer.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from wsc.compile import compile
from wsc.layout import Layout
from wsc.lowering.rules.elementwise import VECTOR
from wsc.lowering.rules.flexible import VIEWS
from wsc.lowering.strategy import STREAMING
from wsc.machine.cost import Cost, cost
from wsc.machine.steps import Multicast, Reduce, Rounds, Shift
from wsc.machine.streaming_kernels import ROUND_WORDS
from wsc.machine.wafer import MOST, Wafer
from wsc.models.rope import inverse_frequencies, rotate
from wsc.program import PlacedOp, Program


@dataclass(frozen=True)
class Work:
    """One compiled piece of a step on one wafer.

    cost: of one band, and of summing over the bands; the cycles are those of the wafer
    peak_bytes: of SRAM a PE needs at once for activations and for what passes, beside its code
    input_bytes: of it the piece's input x
    program: of one band
    """

    cost: Cost
    peak_bytes: int
    input_bytes: int
    program: Program

    @property
    def cycles(self) -> float:
        return float(self.cost.cycles)


def attention(layer: Any, x: jax.Array, config: Any) -> jax.Array:
    """Causal attention within every sequence of x[B, T, d], grouped queries, no cache."""
    (b, t, _), n, h = x.shape, layer.kv_heads, layer.head_dim
    frequencies = inverse_frequencies(h, config.rope_theta, config.rope_scaling)
    angles = jnp.arange(t, dtype=jnp.float32)[:, None] * frequencies
    rope = jnp.cos(angles)[:, None, :], jnp.sin(angles)[:, None, :]
    q = rotate(layer.q(x).reshape(b, t, -1, h), rope).reshape(b, t, n, -1, h)
    k, v = rotate(layer.k(x).reshape(b, t, n, h), rope), layer.v(x).reshape(b, t, n, h)
    scores = jnp.einsum("btngh,bsnh->bntgs", q, k).astype(jnp.float32) * (1 / math.sqrt(h))
    seen = jnp.tril(jnp.ones((t, t), bool))[:, None, :]
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1).astype(x.dtype)
    out = jnp.einsum("bntgs,bsnh->btngh", weights, v)
    return layer.o(out.reshape(b, t, -1))


def forward(model: Any, config: Any, x: jax.Array) -> jax.Array:
    """The layer `model["layers"][0]` of x[B, T, d], in training: no cache."""
    layer = model["layers"][0]
    x = x + attention(layer.attn, layer.attn_norm(x), config)
    return x + layer.mlp(layer.mlp_norm(x))


def loss(head: Any, x: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean cross entropy of x[B, T, d] against the next tokens [B, T], through the last norm and the head."""
    head = head["layers"][0]
    logits = jnp.einsum("btd,dv->btv", head["norm"](x), head["kernel"]).astype(jnp.float32)
    hit = jnp.arange(logits.shape[-1]) == targets[..., None]
    top = jnp.max(logits, axis=-1, keepdims=True)
    total = jnp.log(jnp.sum(jnp.exp(logits - top), axis=-1)) + top[..., 0]
    return jnp.mean(total - jnp.sum(jnp.where(hit, logits, 0), axis=-1))


def programs(model: Any) -> dict[str, tuple[Callable, Any, tuple[str, ...]]]:
    """(function, weights, other arguments) of each piece of a step, by name."""
    config = model.config
    layer = {"layers": [model.layers[0]]}
    kernel = jax.ShapeDtypeStruct((config.hidden_size, config.vocab_size), model.embed.embedding.dtype)
    head = {"layers": [{"norm": model.norm, "kernel": kernel}]}

    def backward(weights: Any, x: jax.Array, dy: jax.Array) -> Any:
        return jax.vjp(lambda w, x: forward(w, config, x), weights, x)[1](dy)

    def turn(weights: Any, x: jax.Array, targets: jax.Array) -> Any:
        return jax.value_and_grad(loss, argnums=(0, 1))(weights, x, targets)

    return {
        "forward": (lambda weights, x: forward(weights, config, x), layer, ("x",)),
        "backward": (backward, layer, ("x", "x")),
        "head": (turn, head, ("x", "targets")),
    }


def nbytes(weights: Any) -> int:
    """Bytes of all leaves."""
    return sum(math.prod(a.shape) * jnp.dtype(a.dtype).itemsize for a in jax.tree.leaves(weights))


def work(model: Any, name: str, batch: int, sequence: int, bands: int, wafer: Wafer) -> Work:
    """One piece of a step compiled for one of `bands` bands, which has `batch / bands` sequences.

    Raises what `wsc.compile` raises. Whether it fits is asked of `peak_bytes`, since weights are not stored: it is
    compiled with room for all of them."""
    fn, weights, arguments = programs(model)[name]
    rows, each = int(wafer.rows) // bands, batch // bands
    dtype, width = model.embed.embedding.dtype, model.config.hidden_size
    shapes = {
        "x": jax.ShapeDtypeStruct((each, sequence, width), dtype),
        "targets": jax.ShapeDtypeStruct((each, sequence), jnp.int32),
    }
    roomy = dataclasses.replace(wafer, sram_bytes=MOST)
    exe = compile(
        fn,
        weights,
        *(shapes[a] for a in arguments),
        wafer=roomy,
        wafers=1,
        strategy=STREAMING.name,
        grid=(rows, int(wafer.columns)),
        weight_argnums=0,
    )
    program = exe.program
    done = sum((cost(s, wafer) for _, op in program.ops() for s in op.steps), Cost())
    done += cost(Multicast(int(wafer.rows), int(wafer.rows) - 1, 1, 1), wafer)  # the first weight, to all bands
    summed = name != "forward" and bands > 1
    if summed:
        tile = -(-nbytes(weights) // (rows * int(wafer.columns)))
        across = Reduce("chain", bands, (bands - 1) * rows, -(-tile // wafer.wavelet_bytes), rows * int(wafer.columns))
        done += cost(across, wafer)
    ops, x = program.stages[0].ops, next(v for v in program.jaxpr.invars if len(v.aval.shape) == 3)
    return Work(done, peak_bytes(program, gradients=name != "forward"), _bytes(_entry(x, ops), x, wafer), program)


def peak_bytes(program: Program, gradients: bool) -> int:
    """The most bytes of activations that a PE holds at once. Weights pass, and gradients of weights leave as they are
    made: of these only what a round passes on is there, twice: one comes in while the other is in use, and the sums of
    one. Views share their bytes, and an element-wise op writes over an operand that dies there."""
    stage = program.stages[0]
    jaxpr, wafer = program.jaxpr, program.wafer
    weights = set(program.weight_vars)
    ops = [op for op in stage.ops if not op.control]
    leaving = _leaving(jaxpr, gradients)
    sizes: dict[Any, int] = {v: _bytes(_entry(v, ops), v, wafer) for v in jaxpr.invars if v not in weights}
    root: dict[Any, Any] = {}
    last: dict[Any, int] = {}
    for n, op in enumerate(ops):
        for v in _variables(op.eqn.invars):
            last[root.get(v, v)] = n
        for v, at in zip(op.eqn.outvars, op.outs, strict=True):
            source = next(iter(_variables(op.eqn.invars)), None)
            if op.name in VIEWS and source is not None and root.get(source, source) in sizes:
                root[v] = root.get(source, source)
            else:
                sizes[v] = 0 if v in leaving else _bytes(at, v, wafer)
                last[v] = n
    for v in _variables(jaxpr.outvars):
        last[root.get(v, v)] = len(ops) if v not in leaving else last.get(root.get(v, v), 0)
    live = sum(sizes[v] for v in jaxpr.invars if v in sizes and v in last)
    most = live
    for n, op in enumerate(ops):
        dying = {root.get(v, v) for v in _variables(op.eqn.invars) if last[root.get(v, v)] == n} & sizes.keys()
        freed = sum(sizes[v] for v in dying)
        made = sum(sizes[v] for v in op.eqn.outvars if v in sizes)
        most = max(most, live + (max(0, made - freed) if op.name in VECTOR else made) + _passing_bytes(op, wafer))
        live += made - freed - sum(sizes[v] for v in op.eqn.outvars if v in sizes and last[v] == n)
    return most


def _passing_bytes(op: PlacedOp, wafer: Wafer) -> int:
    rounds = [s for s in op.steps if isinstance(s, Rounds)]
    words = [sum(f.wavelets for f in r.fabric if isinstance(f, Shift)) for r in rounds]
    return int(wafer.wavelet_bytes) * (2 * max(words) + ROUND_WORDS) if words else 0


def _variables(atoms: Any) -> list[Any]:
    return [a for a in atoms if not hasattr(a, "val")]


def _entry(v: Any, ops: Iterable[PlacedOp]) -> Layout | None:
    """How an argument lies: as the first op that reads it wants it."""
    return next((at for op in ops for a, at in zip(op.eqn.invars, op.ins, strict=True) if a is v and at), None)


def _bytes(at: Layout | None, v: Any, wafer: Wafer) -> int:
    if at is None:
        return 0
    align = int(wafer.align_bytes)
    return -(-at.size(tuple(v.aval.shape)) * v.aval.dtype.itemsize // align) * align


def _leaving(jaxpr: Any, gradients: bool) -> set[Any]:
    """Results that leave as they are made: gradients of weights, which have no shape of an activation."""
    if not gradients:
        return set()
    acts = {tuple(v.aval.shape) for v in jaxpr.invars if len(v.aval.shape) == 3}
    return {v for v in _variables(jaxpr.outvars) if tuple(v.aval.shape) not in acts}
