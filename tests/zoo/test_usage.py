"""How people hand models over: stacked layers, remat, trees in and out, keyword arguments, odd dtypes, odd einsums."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import normal, small

import wsc

X = normal(2, 16)


class LinenLayer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(16)(nn.tanh(nn.Dense(24)(x))), None


@pytest.mark.parametrize("remat", [False, True])
def test_nn_scan_over_layers(equal, variables, remat):
    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            body = nn.remat(LinenLayer, prevent_cse=False) if remat else LinenLayer
            scanned = nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
            return scanned(name="layers")(x, None)[0]

    exe = equal(Stack(), variables(Stack(), X), X)
    assert [s.name for s in exe.program.stages] == ["layers[0]", "layers[1]", "layers[2]"]


class Layer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.up, self.down = nnx.Linear(16, 24, rngs=rngs), nnx.Linear(24, 16, rngs=rngs)

    def __call__(self, x):
        return x + self.down(jnp.tanh(self.up(x)))


class Stacked(nnx.Module):
    """Layers made by nnx.vmap, run by nnx.scan."""

    def __init__(self, rngs: nnx.Rngs):
        made = nnx.split_rngs(splits=3)(nnx.vmap(Layer, in_axes=0, out_axes=0))
        self.layers = made(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def forward(x, layer):
            return layer(x)

        return forward(x, self.layers)


def test_nnx_scan_over_layers(equal, filled):
    exe = equal(filled(Stacked), X)
    assert [s.name for s in exe.program.stages] == ["layers[0]", "layers[1]", "layers[2]"]


def test_nnx_remat(equal, filled):
    class Rematted(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.layers = nnx.List([Layer(rngs) for _ in range(2)])

        def __call__(self, x):
            for layer in self.layers:
                x = nnx.remat(lambda layer, x: layer(x))(layer, x)
            return x

    equal(filled(Rematted), X)


def test_members_of_an_ensemble(equal):
    """Stacked weights under vmap: a batched product, one member a slice."""
    p = {"w": normal(3, 16, 8), "b": normal(3, 8)}
    equal(jax.vmap(lambda p, x: x @ p["w"] + p["b"], in_axes=(0, None)), p, X)


def test_bfloat16_parameters(equal, filled):
    class Narrow(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            kind = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16, "rngs": rngs}
            self.up, self.norm, self.down = (
                nnx.Linear(16, 24, **kind),
                nnx.RMSNorm(24, **kind),
                nnx.Linear(24, 8, **kind),
            )

        def __call__(self, x):
            return self.down(self.norm(nnx.silu(self.up(x)))).astype(jnp.float32)

    exe = equal(filled(Narrow), X, tolerance=3e-2)
    assert exe.memory_analysis().weight_bytes == 2 * (16 * 24 + 24 + 24 + 24 * 8 + 8)


def test_trees_in_and_out(equal):
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Batch:
        tokens: jax.Array
        mask: jax.Array
        scale: float

    def model(p, batch):
        x = jnp.where(batch.mask[..., None], p["embed"][batch.tokens], 0.0) * batch.scale
        h = jnp.tanh(x @ p["w"])
        return {"logits": h @ p["embed"].T, "hidden": (x, [h]), "used": batch.mask.sum(), "none": None}

    p = {"embed": normal(20, 16), "w": normal(16, 16)}
    tokens = jnp.asarray([[1, 5, 19]], jnp.int32)
    exe = equal(model, p, Batch(tokens, tokens > 1, 0.5), weight_argnums=0)
    assert set(exe.out_tree.unflatten([0] * exe.out_tree.num_leaves)) == {"logits", "hidden", "used", "none"}


def test_arguments_that_are_none_or_numbers(equal):
    def model(p, x, mask=None, shift=0):
        y = (x + shift) @ p["w"]
        return y if mask is None else jnp.where(mask, y, -1.0)

    p = {"w": normal(16, 8)}
    equal(model, p, X, None, 3, weight_argnums=0)
    equal(model, p, X, jnp.arange(8) % 2 == 0, 3, weight_argnums=0)


def test_arguments_by_keyword_are_bound_first(equal, variables):
    """`functools.partial` is how a module's keyword-only switches are set."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, *, train: bool):
            return nn.Dense(8)(nn.Dropout(0.5, deterministic=not train)(x))

    weights = variables(Model(), X, train=False)
    equal(functools.partial(Model().apply, train=False), weights, X)


def test_integers_and_booleans_alone(equal):
    """No float anywhere: counts and masks of tokens."""
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 9, (4, 16)))
    equal(lambda t: ((t == 3).sum(-1), jnp.cumsum(t, -1) * (t > 4), t.max()), tokens, cut=False)


EINSUMS = [
    ("ij,jk->ik", (16, 12), (12, 8)),
    ("ij,kj->ki", (16, 12), (8, 12)),
    ("bij,jk->bki", (2, 3, 16), (16, 8)),
    ("bthd,hdm->btm", (1, 3, 2, 8), (2, 8, 16)),
    ("btm,cmhd->cbthd", (1, 3, 16), (2, 16, 2, 4)),
    ("i,i->", (16,), (16,)),
    ("i,j->ij", (16,), (12,)),
    ("ij,ij->j", (16, 12), (16, 12)),
    ("bi,io,bo->b", (2, 16), (16, 8), (2, 8)),
    ("...i,io->...o", (2, 3, 16), (16, 8)),
    ("ii->i", (16, 16)),
    ("ijk->k", (4, 5, 12)),
]


@pytest.mark.parametrize("weight", [pytest.param(0, marks=pytest.mark.slow), 1])
@pytest.mark.parametrize("spelling, shapes", [(s, shapes) for s, *shapes in EINSUMS], ids=[s for s, *_ in EINSUMS])
def test_einsums(equal, spelling, shapes, weight):
    weight = min(weight, len(shapes) - 1)
    operands = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
    equal(lambda *a: jnp.einsum(spelling, *a), *operands, weight_argnums=weight, cut=False)


def test_a_large_weight_on_the_left_stays(equal):
    """y = W x, as written in mathematics: the weight is what lies still."""
    exe = equal(lambda w, x: jnp.tanh(w @ x), normal(96, 64), normal(64, 1), wafer=small(usable=1024), weight_argnums=0)
    (weight,) = (w for s in exe.program.stages for w in s.weights)
    assert weight.copies == 1


def test_dropout_that_drops(equal):
    """In training the masks come from a key that is given."""
    model = nn.Dropout(0.5, deterministic=False)
    equal(lambda key, x: model.apply({}, x, rngs={"dropout": key}), jax.random.key(3), X)


def closed_over(w):
    return lambda x: jnp.tanh(x @ w)


def test_what_is_closed_over_is_stored():
    """As much SRAM as the same weight given as an argument."""
    w, x = normal(64, 96), normal(1, 64)
    given = wsc.compile(lambda w, x: jnp.tanh(x @ w), w, x, wafer=small(usable=1024), weight_argnums=0)
    closed = wsc.compile(closed_over(w), x, wafer=small(usable=1024))
    assert closed.memory_analysis().weight_bytes == given.memory_analysis().weight_bytes == w.nbytes


def test_what_is_closed_over_must_fit():
    with pytest.raises(wsc.FitError):
        wsc.compile(closed_over(normal(512, 512)), normal(1, 512), wafer=small(usable=1024), wafers=1)


@pytest.mark.parametrize("handed", ["method", "partial", "lambda"])
def test_a_module_in_other_hands(equal, filled, handed):
    """A method of a module, a partial of it, a function around it: its kernels are stored as its own. Its biases are
    reshaped before they are traced, and are constants then."""
    model = filled(Layer)
    ways = {"method": model.__call__, "partial": functools.partial(model), "lambda": lambda x: model(x)}
    exe = wsc.compile(ways[handed], X, wafer=small(usable=16384))
    assert exe.memory_analysis().weight_bytes == sum(a.nbytes for a in jax.tree.leaves(model) if a.ndim > 1)
    equal(model, X)


def test_what_is_closed_over_is_computed(equal):
    equal(closed_over(normal(64, 96)), normal(1, 64))
