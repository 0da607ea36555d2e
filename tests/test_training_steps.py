"""Training steps: the losses of plain JAX, weights that stay where they are, stages that are visited again."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.training.train_state import TrainState
from helpers import assert_close, assert_within_sram, normal, small

import wsc
from wsc.machine.steps import AllReduce, HostLink
from wsc.models.training import Recipe, Text, new_state, train_step

WAFER = small(24, 20, usable=8192)
X, Y = normal(4, 16), normal(4, 16, seed=5)
SIZES = (16, 32, 16, 16)
PARAMS = {
    f"layer_{i}": {"w": normal(m, n, seed=i) / 4, "b": jnp.zeros(n)}
    for i, (m, n) in enumerate(itertools.pairwise(SIZES))
}


def net(params, x):
    for layer in params.values():
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x


def step_of(optimizer):
    def step(params, state, x, y):
        loss, gradients = jax.value_and_grad(lambda p: ((net(p, x) - y) ** 2).mean())(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    return step


OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optax.adam(1e-2),
    "adamw": optax.adamw(optax.cosine_decay_schedule(1e-2, 10)),
    "clipped": optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(1e-2)),
    "lion": optax.lion(1e-3),
    "rmsprop": optax.rmsprop(1e-3),
}


@pytest.mark.parametrize("order", ["fabric", "xla"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_losses_and_weights_of_plain_jax(name, order):
    step, state = step_of(OPTIMIZERS[name]), OPTIMIZERS[name].init(PARAMS)
    exe = wsc.compile(step, PARAMS, state, X, Y, wafer=WAFER, order=order)
    ours = theirs = (PARAMS, state)
    plain = jax.jit(step)
    for _ in range(10):
        (*ours, found), telemetry = exe(*ours, X, Y)
        *theirs, loss = plain(*theirs, X, Y)
        np.testing.assert_allclose(found, loss, rtol=1e-5)
    assert_close(jax.tree.leaves(ours[0]), jax.tree.leaves(theirs[0]), 1e-4)
    assert telemetry.cycles > 0
    assert_within_sram(exe.program)


@pytest.fixture(scope="module")
def adamw():
    state = OPTIMIZERS["adamw"].init(PARAMS)
    return wsc.compile(step_of(OPTIMIZERS["adamw"]), PARAMS, state, X, Y, wafer=WAFER)


def test_stages_are_visited_forward_and_backward(adamw):
    names = [s.name for s in adamw.program.stages]
    assert names[:3] == ["layer_0", "layer_1", "layer_2"]
    assert names[3:] == ["layer_1, visit 2", "layer_0, visit 2"]
    for stage in adamw.program.stages:
        if stage.home is not None:
            first = adamw.program.stages[stage.home]
            assert (stage.region, stage.memory, stage.weights) == (first.region, first.memory, ())
    assert len(adamw.program.regions) == 3


def test_weights_are_stored_once_and_state_lies_with_them(adamw):
    found = adamw.memory_analysis()
    assert found.weight_bytes == sum(a.nbytes for a in jax.tree.leaves(PARAMS))
    for stage in adamw.program.regions:
        assert len({w.name for w in stage.weights}) == len(stage.weights)
        sizes = {
            w.name.removeprefix("params"): w.stored_bytes // (w.layout.parts.pes * w.copies) for w in stage.weights
        }
        states = [a for a in stage.memory if a.kind == "state"]
        assert len(states) == 2 * len(sizes)
        kept = sorted(a.nbytes for a in states)
        assert kept == sorted([*sizes.values()] * 2)


def test_nothing_but_the_loss_goes_to_the_host(adamw):
    steps = [s for stage in adamw.program.stages for s in stage.departures]
    assert steps == [HostLink(4)]


def test_gradients_are_made_where_their_weights_lie(adamw):
    """The gradient of a weight cut along both axes takes products alone: no sums between PEs."""
    made = [
        op
        for stage, op in adamw.program.ops()
        if op.name == "dot_general" and not op.weights and op.eqn.outvars[0].aval.size >= 256
    ]
    assert len(made) == 3
    assert not [s for op in made for s in op.steps if isinstance(s, AllReduce)]


def test_what_is_not_trained_is_not_updated():
    mask = {"layer_0": False, "layer_1": True, "layer_2": True}
    masked = optax.masked(optax.sgd(0.1), {k: dict.fromkeys(PARAMS[k], on) for k, on in mask.items()})

    def step(params, state, x, y):
        frozen = {**params, "layer_0": jax.lax.stop_gradient(params["layer_0"])}
        loss, gradients = jax.value_and_grad(lambda p: ((net(p, x) - y) ** 2).mean())(frozen)
        updates, state = masked.update(gradients, state, params)
        kept = {"layer_0": params["layer_0"]}
        return optax.apply_updates(params, updates) | kept, state, loss

    state = masked.init(PARAMS)
    exe = wsc.compile(step, PARAMS, state, X, Y, wafer=WAFER)
    found, _ = exe(PARAMS, state, X, Y)
    assert_close(jax.tree.leaves(found), jax.tree.leaves(jax.jit(step)(PARAMS, state, X, Y)), 1e-5)
    assert "layer_0, visit 2" not in [s.name for s in exe.program.stages]


def test_checkpoint_computes_again():
    def step(block):
        def loss(params, x):
            for layer in params.values():
                x = block(layer, x)
            return (x**2).mean()

        def one(params, x):
            value, gradients = jax.value_and_grad(loss)(params, x)
            return jax.tree.map(lambda a, g: a - 0.1 * g, params, gradients), value

        return one

    def block(layer, x):
        return x + jnp.tanh(jnp.sin(x @ layer["w"]) * jnp.cos(x @ layer["w"]))

    params, x = {f"layer_{i}": {"w": normal(16, 16, seed=i) / 4} for i in range(3)}, normal(8, 16)
    kept, again = (wsc.compile(step(b), params, x, wafer=WAFER) for b in (block, jax.checkpoint(block)))
    assert_close(jax.tree.leaves(kept(params, x)[0]), jax.tree.leaves(again(params, x)[0]), 1e-6)
    products = [sum(op.name == "dot_general" for _, op in exe.program.ops()) for exe in (kept, again)]
    assert products[1] == products[0] + 3
    assert again.telemetry.total.flops > kept.telemetry.total.flops


def test_flax_objects_are_updated_in_place():
    recipe = Recipe(layers=1, hidden=16, heads=2, sequence=8, batch=2)
    text = Text(np.arange(4000, dtype=np.int32) % 251)
    (model, optimizer), (same, other) = new_state(recipe), new_state(recipe)
    exe = wsc.compile(train_step, model, optimizer, jnp.asarray(text.batch(recipe, 0)))
    plain = nnx.jit(train_step)
    for i in range(5):
        batch = jnp.asarray(text.batch(recipe, i))
        np.testing.assert_allclose(exe(model, optimizer, batch)[0], plain(same, other, batch), rtol=1e-5)
    assert_close(jax.tree.leaves(model), jax.tree.leaves(same), 1e-4)
    assert int(optimizer.step[...]) == 5


def test_a_linen_train_state():
    module = linen.Dense(8)
    state = TrainState.create(apply_fn=module.apply, params=module.init(jax.random.key(0), X), tx=optax.adam(1e-2))

    def step(state, x):
        loss, gradients = jax.value_and_grad(lambda p: (state.apply_fn(p, x) ** 2).mean())(state.params)
        return state.apply_gradients(grads=gradients), loss

    exe = wsc.compile(step, state, X, wafer=WAFER)
    (found, loss), _ = exe(state, X)
    expected, value = jax.jit(step)(state, X)
    np.testing.assert_allclose(loss, value, rtol=1e-6)
    assert_close(jax.tree.leaves(found.params), jax.tree.leaves(expected.params), 1e-5)
    assert exe.memory_analysis().weight_bytes == sum(a.nbytes for a in jax.tree.leaves(state.params))


@pytest.mark.slow
@pytest.mark.parametrize("order", ["fabric", "xla"])
def test_a_million_parameters_for_200_steps(order):
    recipe = Recipe()
    text = Text(np.frombuffer(__doc__.encode() * 400, np.uint8).astype(np.int32))
    (model, optimizer), (same, other) = new_state(recipe), new_state(recipe)
    exe = wsc.compile(train_step, model, optimizer, jnp.asarray(text.batch(recipe, 0)), order=order)
    plain, worst = nnx.jit(train_step), 0.0
    for i in range(200):
        batch = jnp.asarray(text.batch(recipe, i))
        found, loss = float(exe(model, optimizer, batch)[0]), float(plain(same, other, batch))
        worst = max(worst, abs(found - loss) / loss)
    if order == "fabric" and worst > 1e-4:  # sums in another order: rounding grows from step to step
        pytest.xfail(f"losses differ by {worst:.1e}")
    assert worst <= 1e-4
