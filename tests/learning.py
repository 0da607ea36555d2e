"""What tests of training steps share: a perceptron, its steps, and the comparison of what two of them learn."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from helpers import assert_close, assert_within_sram, most_parts, normal, small

import wsc
from wsc.lowering.layout import Layout
from wsc.machine.steps import HostLink
from wsc.runtime.execute import as_function

WIDTHS, DEEP = (8, 12, 4), (8, 12, 12, 12, 4)
BATCH = 6
WAFER = small(24, 36, 6000)
BATCHES = [(normal(BATCH, 8, seed=n), normal(BATCH, 4, seed=100 + n)) for n in range(20)]


def params(widths=WIDTHS):
    sizes = list(itertools.pairwise(widths))
    return {f"l{i}": {"w": 0.4 * normal(*s, seed=i), "b": 0.1 * normal(s[1], seed=i)} for i, s in enumerate(sizes)}


def dense(own, x):
    return jnp.tanh(x @ own["w"] + own["b"])


def forward(p, x, layer=dense):
    *hidden, last = p.values()
    for own in hidden:
        x = layer(own, x)
    return x @ last["w"] + last["b"]


def loss_of(p, x, y, **how):
    return jnp.mean((forward(p, x, **how) - y) ** 2)


def by_hand(p, x, y, loss=loss_of):
    value, g = jax.value_and_grad(loss)(p, x, y)
    return jax.tree.map(lambda p, g: p - 0.1 * g, p, g), value


def by_optax(tx):
    def step(p, s, x, y):
        value, g = jax.value_and_grad(loss_of)(p, x, y)
        u, s = tx.update(g, s, p)
        return optax.apply_updates(p, u), s, value

    return step


def learn(run, state: tuple, batches=BATCHES) -> tuple[tuple, list]:
    """What the state is after all batches, and the losses on the way."""
    losses = []
    for batch in batches:
        *after, value = run(*state, *batch)
        state = tuple(after)
        losses.append(value)
    return state, losses


def learns_alike(step, state: tuple, batches=BATCHES, tolerance: float = 1e-5) -> wsc.Executable:
    """Compile a step; in both orders it learns what `jax.jit` of it does."""
    exe = wsc.compile(step, *state, *batches[0], wafer=WAFER)
    want = learn(jax.jit(step), state, batches)
    xla = jax.jit(lambda *args: as_function(exe.program, "xla")(*jax.tree.leaves(args))[0])
    runs = [lambda *args: exe(*args)[0], lambda *args: jax.tree.unflatten(exe.out_tree, xla(*args))]
    for run in runs:
        got = learn(run, state, batches)
        np.testing.assert_allclose(np.ravel(got[1]), np.ravel(want[1]), rtol=tolerance)
        assert_close(got[0], want[0], tolerance)
    assert most_parts(exe.program) > 50  # really cut
    assert_stays(exe)
    return exe


def to_host(exe) -> list[int]:
    """Bytes of every array that goes to the host."""
    return [s.nbytes for stage in exe.program.stages for s in stage.departures if isinstance(s, HostLink)]


def from_host(exe) -> list[int]:
    steps = [s for stage in exe.program.stages for _, _, steps in stage.arrivals for s in steps]
    return [s.nbytes for s in steps if isinstance(s, HostLink)]


def assert_stays(exe) -> None:
    """Weights are stored once, in stages that are visited again; only the loss goes to the host."""
    stored = [w.name for s in exe.program.regions for w in s.weights]
    assert len(stored) == len(set(stored))
    assert not [s.name for s in exe.program.stages if "(again)" in s.name]
    for stage in exe.program.stages:
        if stage.home is not None:
            home = exe.program.stages[stage.home]
            assert stage.region == home.region and stage.memory == home.memory and not stage.weights
            assert stage.template != home.template
    assert sum(to_host(exe)) == 4
    assert_within_sram(exe.program)


def kept(exe) -> dict[str, Layout]:
    return {w.name: w.layout for s in exe.program.regions for w in s.weights}
