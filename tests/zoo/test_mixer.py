"""MLP-Mixer: products over patches and over channels in turn, the one with the other transposed."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

PATCHES, WIDTH, LAYERS = 9, 16, 2
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, PATCHES, WIDTH)), jnp.float32)


class LinenMlp(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(self.hidden)(x)))


class LinenMixer(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(LAYERS):
            h = jnp.swapaxes(nn.LayerNorm()(x), 1, 2)
            x = x + jnp.swapaxes(LinenMlp(2 * PATCHES)(h), 1, 2)
            x = x + LinenMlp(2 * WIDTH)(nn.LayerNorm()(x))
        return nn.LayerNorm()(x).mean(axis=1)


class Block(nnx.Module):
    """Patches are mixed by a product with the weight on the left: nothing is transposed."""

    def __init__(self, rngs: nnx.Rngs):
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2)])
        normal = nnx.initializers.normal(0.3)
        self.up = nnx.Param(normal(rngs.params(), (2 * PATCHES, PATCHES)))
        self.down = nnx.Param(normal(rngs.params(), (PATCHES, 2 * PATCHES)))
        self.channels = nnx.Sequential(
            nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs), nnx.gelu, nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)
        )

    def __call__(self, x):
        x = x + self.down @ nnx.gelu(self.up @ self.norms[0](x))
        return x + self.channels(self.norms[1](x))


class Mixer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.blocks = nnx.List([Block(rngs) for _ in range(LAYERS)])

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.slow
def test_linen(equal, variables):
    equal(LinenMixer(), variables(LinenMixer(), X), X)


@pytest.mark.parametrize("batch", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_nnx(equal, filled, batch):
    exe = equal(filled(Mixer), X[:batch])
    assert [s.name for s in exe.program.stages] == ["blocks[0]", "blocks[1]"]
