"""Vision transformers: patches by a reshape and by a convolution, a class token, attention without a mask."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

SIDE, PATCH, WIDTH, HEADS, LAYERS, CLASSES = 8, 4, 16, 2, 2, 5
PATCHES = (SIDE // PATCH) ** 2


def patches_of(images):
    """(batch, side, side, 3) -> (batch, patches, values)."""
    n = SIDE // PATCH
    cut = images.reshape(-1, n, PATCH, n, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(-1, n * n, PATCH * PATCH * 3)


class LinenViT(nn.Module):
    conv: bool

    @nn.compact
    def __call__(self, images):
        if self.conv:
            x = nn.Conv(WIDTH, (PATCH, PATCH), strides=PATCH, padding="VALID", name="patch")(images)
            x = x.reshape(x.shape[0], -1, WIDTH)
        else:
            x = nn.Dense(WIDTH, name="patch")(patches_of(images))
        token = self.param("cls", nn.initializers.normal(0.2), (1, 1, WIDTH))
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, WIDTH)), x], axis=1)
        x = x + self.param("positions", nn.initializers.normal(0.2), (1, PATCHES + 1, WIDTH))
        for i in range(LAYERS):
            h = nn.LayerNorm(name=f"layers_{i}_before")(x)
            x = x + nn.MultiHeadDotProductAttention(HEADS, name=f"layers_{i}_attention")(h, h)
            h = nn.Dense(4 * WIDTH, name=f"layers_{i}_up")(nn.LayerNorm(name=f"layers_{i}_after")(x))
            x = x + nn.Dense(WIDTH, name=f"layers_{i}_down")(nn.gelu(h, approximate=False))
        return nn.Dense(CLASSES, name="head")(nn.LayerNorm(name="norm")(x)[:, 0])


class Layer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.before, self.after = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, dropout_rate=0.1, decode=False, rngs=rngs)
        self.mlp = nnx.Sequential(
            nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs), nnx.gelu, nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)
        )

    def __call__(self, x):
        x = x + self.attention(self.before(x))
        return x + self.mlp(self.after(x))


class ViT(nnx.Module):
    def __init__(self, conv: bool, rngs: nnx.Rngs):
        self.conv = conv
        if conv:
            self.patch = nnx.Conv(3, WIDTH, (PATCH, PATCH), strides=PATCH, padding="VALID", rngs=rngs)
        else:
            self.patch = nnx.Linear(PATCH * PATCH * 3, WIDTH, rngs=rngs)
        self.cls = nnx.Param(jax.random.normal(rngs.params(), (1, 1, WIDTH)))
        self.positions = nnx.Param(jax.random.normal(rngs.params(), (1, PATCHES + 1, WIDTH)))
        self.layers = nnx.List([Layer(rngs) for _ in range(LAYERS)])
        self.norm, self.head = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, images):
        x = self.patch(images if self.conv else patches_of(images)).reshape(images.shape[0], PATCHES, WIDTH)
        x = jnp.concatenate([jnp.tile(self.cls[...], (images.shape[0], 1, 1)), x], axis=1) + self.positions[...]
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(axis=1))


IMAGES = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, SIDE, SIDE, 3)), jnp.float32)
BOTH = pytest.mark.parametrize("conv", [pytest.param(False, marks=pytest.mark.slow), True], ids=["reshape", "conv"])


@pytest.mark.slow
@BOTH
def test_linen(equal, variables, conv):
    equal(LinenViT(conv), variables(LinenViT(conv), IMAGES), IMAGES)


@BOTH
def test_nnx(equal, filled, conv):
    model = filled(partial(ViT, conv))
    equal(model, IMAGES)
