"""Where a training step lies and what it costs: weights, moments and gradients in one place, stages visited again."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax
from learning import BATCH, BATCHES, DEEP, WAFER, by_hand, by_optax, forward, kept, learns_alike, loss_of, params

import wsc
from wsc.lowering.layout import Layout
from wsc.program import PlacedOp, PlacedStage


def ops_of(exe) -> list[tuple[PlacedStage, PlacedOp]]:
    return [(s, op) for s, op in exe.program.ops() if not op.control]


def layouts(exe, position: int) -> set[Layout]:
    """How an argument's leaf lies where ops read it as it is."""
    v = exe.program.jaxpr.invars[position]
    found = {at for _, op in ops_of(exe) for a, at in zip(op.eqn.invars, op.ins, strict=True) if a is v}
    return {at for at in found if at is not None}


def test_layers_alike_are_planned_once() -> None:
    """Of four layers the middle two are alike, forward and backward; each is visited twice, in reverse order."""
    exe = wsc.compile(by_hand, params(DEEP), *BATCHES[0], wafer=WAFER)
    stages = {s.name: s for s in exe.program.stages}
    assert list(stages) == ["l0", "l1", "l2", "l3", "l2, visit 2", "l1, visit 2", "l0, visit 2"]
    assert stages["l1"].template == stages["l2"].template
    assert stages["l1, visit 2"].template == stages["l2, visit 2"].template
    assert stages["l1"].region.grid == stages["l2"].region.grid
    assert stages["l0"].template != stages["l1"].template


def test_flops_of_the_products() -> None:
    """2 flops an element of a weight and row of the batch: forward, for the weight's gradient, and, but for the first
    layer, for that of its input."""
    exe = wsc.compile(by_hand, params(DEEP), *BATCHES[0], wafer=WAFER)
    sizes = [a * b for a, b in itertools.pairwise(DEEP)]
    found = [r["flops"] for r in exe.telemetry.ops() if r["op"] == "dot_general"]
    assert sum(found) == 2 * BATCH * (3 * sum(sizes) - sizes[0])
    assert len(found) == 3 * len(sizes) - 1
    again = [r["flops"] for r in exe.telemetry.ops() if r["op"] == "dot_general" and "visit" in r["stage"]]
    assert sum(again) == 2 * BATCH * (sizes[0] + 2 * sizes[1] + 2 * sizes[2])  # the last layer is met once


@pytest.mark.slow
def test_an_update_is_paid_for_element_by_element() -> None:
    """AdamW (Loshchilov and Hutter, algorithm 2) takes 14 operations an element more than gradient descent: 3 for
    the mean, 4 for the mean of squares, 2 for their bias, a root, a sum, a quotient, and 2 for the decay. What optax
    writes has a power of one and the sum of a zero too."""
    adamw, p = optax.adamw(0.01), params()
    steps = [(by_optax(tx), tx.init(p)) for tx in (adamw, optax.sgd(0.1))]
    exes = [wsc.compile(step, p, s, *BATCHES[0], wafer=WAFER) for step, s in steps]
    flops = [sum(r["flops"] for r in exe.telemetry.ops() if not r["control"]) for exe in exes]
    elements = sum(a.size for a in jax.tree.leaves(p))
    assert 14 <= (flops[0] - flops[1]) / elements <= 16
    assert exes[0].telemetry.cycles > exes[1].telemetry.cycles
    state = exes[0].memory_analysis().state_bytes
    assert state >= 2 * 4 * elements and exes[1].memory_analysis().state_bytes == 0


def test_moments_lie_as_their_weights() -> None:
    tx, p = optax.adam(0.01), params()
    exe = wsc.compile(by_optax(tx), p, tx.init(p), *BATCHES[0], wafer=WAFER)
    flat = jax.tree_util.tree_flatten_with_path((p, tx.init(p)))[0]
    at = kept(exe)
    checked = 0
    for position, (path, leaf) in enumerate(flat):
        if leaf.ndim and path[0].idx == 1:
            layer, name = path[-2].key, path[-1].key
            assert layouts(exe, position) == {at[f"p.{layer}.{name}"]}, jax.tree_util.keystr(path)
            checked += 1
    assert checked == 8


def test_gradients_are_made_where_their_weights_lie() -> None:
    """The product that makes a weight's gradient sums over the batch, which every PE has all of: nothing is added
    between PEs, and each element comes to be on the PE that keeps the weight's element."""
    exe = wsc.compile(by_hand, params(DEEP), *BATCHES[0], wafer=WAFER)
    at = {i: kept(exe)[f"p.l{i}.w"] for i in range(4)}
    shapes: dict = {}  # of gradients before their transposition: the layers of it
    for i, (a, b) in enumerate(itertools.pairwise(DEEP)):
        shapes.setdefault((b, a), []).append(i)
    seen = 0
    for stage, op in ops_of(exe):
        shape = op.eqn.outvars[0].aval.shape
        if op.name != "dot_general" or op.weights or shape not in shapes:
            continue
        layer = int(stage.name[1])
        assert layer in shapes[shape]
        (out,) = op.outs
        assert out is not None
        assert (out.y[::-1], out.x[::-1]) == (at[layer].y, at[layer].x)  # before its transposition
        assert not any("Reduce" in type(s).__name__ for s in op.steps)
        seen += 1
    assert seen == 4


@pytest.mark.slow
def test_frozen_layers_are_not_visited_for_an_update() -> None:
    """Two ways to freeze the first layers: nothing goes back past the first one that is trained."""
    p = params(DEEP)
    labels = {k: "frozen" if k in ("l0", "l1") else "trained" for k in p}
    tx = optax.multi_transform({"trained": optax.adam(0.1), "frozen": optax.set_to_zero()}, labels)

    def stopped(p, x, y):
        return loss_of({**p, "l0": lax.stop_gradient(p["l0"]), "l1": lax.stop_gradient(p["l1"])}, x, y)

    both = (by_optax(tx), (p, tx.init(p))), (partial(by_hand, loss=stopped), (p,))
    for step, state in both:
        exe = learns_alike(step, state, BATCHES[:4])
        visits = [s.name for s in exe.program.stages if s.home is not None]
        assert visits == ["l2, visit 2"]
        assert set(kept(exe)) == {f"p.{k}.{v}" for k in p for v in "wb"}


@pytest.mark.slow
def test_weights_in_16_bits_with_masters_in_32() -> None:
    """The masters lie as the weights that are computed from them; neither goes to the host."""
    tx, p = optax.adam(0.01), params()

    def narrow(tree):
        return jax.tree.map(lambda a: a.astype(jnp.bfloat16), tree)

    def step(low, p, s, x, y):
        value, g = jax.value_and_grad(lambda low: jnp.mean((forward(low, narrow(x)).astype(jnp.float32) - y) ** 2))(low)
        u, s = tx.update(jax.tree.map(lambda g: g.astype(jnp.float32), g), s, p)
        p = optax.apply_updates(p, u)
        return narrow(p), p, s, value

    exe = learns_alike(step, (narrow(p), p, tx.init(p)), BATCHES[:5], tolerance=5e-2)
    assert set(kept(exe)) == {f"low.{k}.{v}" for k in p for v in "wb"}
    elements = sum(a.size for a in jax.tree.leaves(p))
    assert exe.memory_analysis().weight_bytes == 2 * elements
    names = [a.name for s in exe.program.regions for a in s.memory if a.kind == "state"]
    assert len({*names}) == len(names) == 3 * 4
