"""Stages follow layers, whichever way the layers are written; equal layers are planned once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from helpers import normal, run_everywhere, small
from jax import lax

import wsc
from wsc.models import Llama, LlamaConfig

WIDTH = 16


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        return x + self.down(jax.nn.silu(self.up(self.norm(x))))


class Net(nnx.Module):
    def __init__(self, rngs, layers=3):
        self.embed = nnx.Embed(40, WIDTH, rngs=rngs)
        self.layers = nnx.List([Block(rngs) for _ in range(layers)])
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 40, rngs=rngs)

    def __call__(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class LinenBlock(linen.Module):
    @linen.compact
    def __call__(self, x):
        return x + linen.Dense(WIDTH)(jnp.tanh(linen.Dense(2 * WIDTH)(linen.RMSNorm()(x))))


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, ids):
        x = linen.Embed(40, WIDTH)(ids)
        for _ in range(3):
            x = LinenBlock()(x)
        return linen.Dense(40)(linen.RMSNorm()(x))


IDS = jnp.array([[3, 39]], jnp.int32)
WAFER = small(24, 24, 2048)


def names_of(exe):
    return [s.name for s in exe.program.stages]


def templates_of(exe):
    return [s.template for s in exe.program.stages]


def test_nnx():
    net = Net(nnx.Rngs(0))
    exe = wsc.compile(net, IDS, wafer=WAFER)
    np.testing.assert_allclose(exe(IDS)[0], net(IDS), rtol=1e-4, atol=1e-5)
    assert names_of(exe) == ["embed", "layers[0]", "layers[1]", "layers[2]", "head"]
    first, *layers, last = templates_of(exe)
    assert len(set(layers)) == 1 and len({first, last, *layers}) == 3


def test_nnx_as_an_argument():
    net = Net(nnx.Rngs(0))
    exe = wsc.compile(lambda net, ids: net(ids), net, IDS, wafer=WAFER)
    np.testing.assert_allclose(exe(net, IDS)[0], net(IDS), rtol=1e-4, atol=1e-5)
    assert names_of(exe) == ["embed", "layers[0]", "layers[1]", "layers[2]", "head"]


def test_linen():
    net = LinenNet()
    variables = net.init(jax.random.key(0), IDS)
    exe = wsc.compile(net, variables, IDS, wafer=WAFER)
    np.testing.assert_allclose(exe(variables, IDS)[0], net.apply(variables, IDS), rtol=1e-4, atol=1e-5)
    assert names_of(exe) == ["Embed_0", "LinenBlock_0", "LinenBlock_1", "LinenBlock_2", "Dense_0"]
    assert len(set(templates_of(exe)[1:4])) == 1


def test_dicts_and_lists():
    def fn(params, x):
        for layer in params["blocks"]:
            x = x + jnp.tanh(x @ layer["a"]) @ layer["b"]
        return x @ params["out"]["w"]

    blocks = [{"a": normal(16, 24, seed=i) / 4, "b": normal(24, 16, seed=i) / 4} for i in range(3)]
    exe = run_everywhere(fn, {"blocks": blocks, "out": {"w": normal(16, 30)}}, normal(1, 16), wafer=WAFER)
    assert names_of(exe) == ["blocks[0]", "blocks[1]", "blocks[2]", "out"]
    assert len(set(templates_of(exe))) == 2


def test_stacked_scan():
    def fn(params, x):
        return lax.scan(lambda x, w: (x + jnp.tanh(x @ w["a"]), None), x, params)[0]

    exe = wsc.compile(fn, {"a": normal(5, 16, 16)}, normal(1, 16), wafer=WAFER)
    assert len(names_of(exe)) == 5 and all(f"[{i}]" in n for i, n in enumerate(names_of(exe)))
    *layers, last = templates_of(exe)
    assert len(set(layers)) == 1 and last not in layers, "the last one's result goes to the host"


def test_layers_that_differ_are_not_one_template():
    def fn(params, x):
        for i, layer in enumerate(params["blocks"]):
            x = x + (jnp.tanh if i else jnp.sin)(x @ layer["a"])
        return x

    blocks = [{"a": normal(16, 16, seed=i)} for i in range(4)]
    a, b, c, _ = templates_of(wsc.compile(fn, {"blocks": blocks}, normal(1, 16), wafer=WAFER))
    assert a != b == c


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_llama(dtype, tied):
    c = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    exe = wsc.compile(Llama.abstract(c, dtype=dtype), wafer=small(24, 24, 32768), context=32, prefill_chunk=4)
    names, templates = names_of(exe), templates_of(exe)
    assert [n for n in names if n.startswith("layers")] == [f"layers[{i}]" for i in range(4)]
    assert names[0] == "embed" and len(names) == 6
    assert len(set(templates[1:5])) == 1
    used = [w.name for s in exe.program.stages for w in s.weights]
    assert sum("norm" in n for n in used) >= 9, "two a layer and the last"


def test_small_stages_join_their_neighbour():
    """A norm of 16 numbers beside matrices of 4,096 gets no region of its own."""

    def fn(params, x):
        x = x * params["first_norm"]["scale"]
        x = jnp.tanh(x @ params["mix"]["w"])
        return x * params["last_norm"]["scale"]

    params = {"first_norm": {"scale": normal(64)}, "mix": {"w": normal(64, 64)}, "last_norm": {"scale": normal(64)}}
    exe = run_everywhere(fn, params, normal(1, 64), wafer=WAFER)
    assert names_of(exe) == ["mix"]


def test_a_stage_gets_its_input_from_the_one_before():
    def fn(params, x):
        for layer in params["blocks"]:
            x = x + jnp.tanh(x @ layer["a"])
        return x

    blocks = [{"a": normal(16, 16, seed=i)} for i in range(4)]
    stages = wsc.compile(fn, {"blocks": blocks}, normal(1, 16), wafer=WAFER).program.stages
    sources = [{source for value, source, _ in s.arrivals if value is not None} for s in stages]
    assert sources == [{None}, {0}, {1}, {2}]
    assert [bool(s.departures) for s in stages] == [False, False, False, True]


def test_every_equation_runs_somewhere():
    net = Net(nnx.Rngs(0))
    program = wsc.compile(net, IDS, wafer=WAFER).program
    placed = {id(op.eqn) for _, op in program.ops()}
    assert placed == {id(e) for e in program.jaxpr.eqns}
