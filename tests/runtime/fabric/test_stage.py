"""A placed stage on the fabric simulator: what it hands on is what the executor computes, in about the cycles that the
closed forms say."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import wsc
from wsc.errors import ArgumentError, CycleLimitError
from wsc.layout import Grid, Layout
from wsc.machine.cost import cost
from wsc.machine.steps import AllReduce, Compute, HostLink, Move, Multicast, Reduce, Rounds, Shift
from wsc.machine.wafer import WSE3
from wsc.models import Llama, LlamaConfig
from wsc.runtime.fabric import lines
from wsc.runtime.fabric.held import _index, cuts
from wsc.runtime.fabric.phases import lines_of, phase, work
from wsc.runtime.fabric.program import Fabric, Instruction
from wsc.runtime.fabric.sharing import after
from wsc.runtime.fabric.simulate import simulate
from wsc.runtime.fabric.sizes import Timing

STORIES = Path(__file__).parents[3].parent / "shared/data/stories260K/stories260K.bin"
ANY = Instruction(0)


def decoded(model, context: int, steps: int, **options):
    """A decode program, and the arguments of its next step after some."""
    exe = wsc.compile(model, context=context, **options)
    cache = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), model.abstract_cache(batch=1, context=context))
    token = jnp.ones((1, 1), jnp.int32)
    for _ in range(steps):
        (logits, cache), _ = exe(token, cache)
        token = logits[:, -1].argmax(-1, keepdims=True).astype(jnp.int32)
    return exe, (token, cache)


def assert_layer(exe, args, layer: int = 0):
    found = exe.simulate(*args)
    assert found.equal and found.summed == found.collectives > 10
    (_, cache), _ = exe(*args)  # what the whole program, compiled on its own, writes
    rows = [np.asarray(part[layer]) for part in (cache.k, cache.v)]
    for mine in rows:
        assert any(np.array_equal(mine, out.reshape(mine.shape)) for out in found.outputs if out.size == mine.size)
    assert abs(found.error) < 10, found
    assert sum(p.simulated for p in found.phases) == found.cycles
    return found


@pytest.mark.slow
def test_a_decode_layer_of_512_features():
    config = LlamaConfig(
        vocab_size=256, hidden_size=512, num_hidden_layers=1, num_attention_heads=8, num_key_value_heads=4,
        intermediate_size=1408,
    )  # fmt: skip
    assert_layer(*decoded(Llama(config, rngs=nnx.Rngs(0)), 64, 4, grid=(32, 32)))


@pytest.mark.slow
@pytest.mark.skipif(not STORIES.exists(), reason="needs the stories260K checkpoint")
def test_a_decode_layer_of_a_trained_model():
    assert_layer(*decoded(wsc.models.load(str(STORIES))[0], 128, 6))


@pytest.fixture(scope="module")
def small():
    config = LlamaConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48,
    )  # fmt: skip
    return decoded(Llama(config, rngs=nnx.Rngs(0)), 16, 3, grid=(8, 12))


def test_a_small_layer(small):
    """With values; without arguments, where time alone is simulated and is the same; a cut-out, whose lines are
    shorter; and not beyond a limit."""
    exe, args = small
    found = assert_layer(exe, args)
    assert found.run.fabric.colors <= WSE3.colors
    assert found.as_dict()["equal"] and "outputs equal" in str(found)
    timed = exe.simulate()
    assert timed.outputs is None and timed.equal is None
    assert abs(timed.cycles - found.cycles) < 0.02 * timed.cycles
    assert exe.simulate(scale=0.5).cycles < timed.cycles
    with pytest.raises(CycleLimitError, match="100 cycles"):
        exe.simulate(limit=100)


@pytest.mark.parametrize(
    ("options", "what"),
    [({"stage": "nowhere"}, "no stage"), ({"stage": 99}, "no stage"), ({"scale": 0}, "scale"), ({"scale": 2}, "scale")],
)
def test_what_cannot_be_simulated_is_said(small, options, what):
    with pytest.raises(ArgumentError, match=what):
        small[0].simulate(**options)


def test_values_of_a_cut_out_are_refused(small):
    exe, args = small
    with pytest.raises(ArgumentError, match="cut-out"):
        exe.simulate(*args, scale=0.5)


GRID = Grid(8, 24)
STEPS = {
    "arithmetic": Compute("vector", 3, 40, 4, 0, GRID.pes, straight=True),
    "multicast": Multicast(24, 23, 30, 8),
    "down the columns": Multicast(8, 7, 30, 24),
    "reduce": Reduce("chain", 24, 23, 30, 8),
    "all-reduce": AllReduce("chain", 24, 23, 30, 8),
    "shift": Shift(5, 60, 600, 8, 30),
    "move": Move(50, 80, 8, 24),
    "host": HostLink(10_000),
    "rounds": Rounds(3, (Compute("fmac", 10, 20, 4, 0, GRID.pes),), (Shift(2, 30, 60 * 12, 8, 30),), 4, 4),
    "rounds that wait for the fabric": Rounds(3, (), (Multicast(6, 5, 100, 32),), 0, 0),
}


@pytest.mark.parametrize("name", STEPS)
def test_every_kind_of_step_is_a_program(name):
    step = STEPS[name]
    run = simulate(phase(step, GRID, WSE3, ANY), Timing.of(WSE3))
    assert run.cycles == pytest.approx(float(cost(step, WSE3).cycles), rel=0.1, abs=12)


def test_lines_lie_side_by_side():
    assert lines_of(Multicast(3, 4, 1, instances=8), Grid(4, 12)).places == ((0, 2, 4), (6, 8, 10))
    assert lines_of(Multicast(9, 8, 1, instances=4), Grid(12, 4)).axis == "y"
    with pytest.raises(ArgumentError, match="does not fit"):
        lines_of(Multicast(30, 29, 1, 1), Grid(4, 12))


def test_programs_that_follow_one_another_share_colors():
    line = lines.all_reduce("chain", 8, 3)
    assert line.then(line).colors == 2 * line.colors
    both = after(line, line)
    assert both.colors == line.colors
    memory = np.random.default_rng(0).normal(size=(3, 1, 8)).astype(np.float32)
    once, twice = (simulate(f, memory=memory).memory for f in (line, both))
    assert np.array_equal(twice, simulate(line, memory=once).memory)
    many = line
    for other in ("star", "tree", "centre_chain", "two_phase"):
        many = after(many, lines.all_reduce(other, 8, 3))
    assert many.colors < 12


def test_threads_wait_for_one_another():
    fabric = work(Grid(1, 1), 10)
    fabric.instruct((0, 0), Instruction(20, bare=True, thread=1))
    for thread in (0, 1):
        fabric.instruct((0, 0), Instruction(1, joins=True, bare=True, thread=thread))
    fabric.instruct((0, 0), Instruction(5))
    run = simulate(fabric, Timing(setup=3))
    assert run.cycles == 20 + 1 + 3 + 5
    assert run.ended[:2, :, 0, 0].tolist() == [[10, 21, 29], [20, 21, 0]]


def test_an_instruction_may_keep_the_larger():
    line = Fabric(1, 2)
    color = line.color()
    lines.add_message(line, color, 1, 0)
    line.instruct((0, 1), Instruction(2, sends=color, load=True))
    line.instruct((0, 0), Instruction(2, reads=(color,), load=True, store=True, largest=True))
    memory = np.array([[1.0, -5.0], [-2.0, 3.0]], np.float32).reshape(2, 1, 2)
    assert simulate(line, memory=memory).memory[:, 0, 0].tolist() == [1.0, 3.0]


@pytest.mark.parametrize(
    ("at", "shape"),
    [
        (Layout((4, 1), (1, 5)), (10, 23)),
        (Layout((1, 1), (3, 2)), (6, 7)),
        (Layout((4,), (5,)), (37,)),
        (Layout((1,), (5,)).folded(0, 2), (30,)),
    ],
)
def test_pes_hold_every_element_and_no_more_than_their_tile(at, shape):
    grid = Grid(9, 7)
    index = _index(at, shape, {a: cuts(at.along(a), getattr(grid, a)) for a in "xy"}, grid)
    assert set(index[index >= 0].tolist()) == set(range(math.prod(shape)))
    assert (index >= 0).sum(axis=-1).max() == at.size(shape)
    tiles = {tuple(t[t >= 0].tolist()) for t in index.reshape(-1, index.shape[-1])}
    assert len(tiles - {()}) <= at.parts.pes
