"""A block of a diffusion U-Net: time embedding, group norms, down by a stride, up by resizing or a transposed
convolution, a skip beside it."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

SIDE, WIDTH = 4, 8
NEAREST, TRANSPOSED = (pytest.param(way, marks=pytest.mark.slow) for way in ("nearest", "transposed"))
WAYS = pytest.mark.parametrize("way", [NEAREST, "bilinear", TRANSPOSED])


def time_embedding(steps):
    angles = steps[:, None] * jnp.exp(-np.log(10_000) * jnp.arange(WIDTH // 2) / (WIDTH // 2))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def larger(x, way):
    return jax.image.resize(x, (x.shape[0], 2 * x.shape[1], 2 * x.shape[2], x.shape[3]), way)


class LinenUNet(nn.Module):
    way: str

    @nn.compact
    def __call__(self, images, steps):
        x = nn.Conv(WIDTH, (3, 3))(images)
        h = nn.silu(nn.GroupNorm(num_groups=2)(x)) + nn.Dense(WIDTH)(nn.silu(time_embedding(steps)))[:, None, None]
        h = nn.Conv(2 * WIDTH, (3, 3), strides=2)(h)
        if self.way == "transposed":
            h = nn.ConvTranspose(WIDTH, (2, 2), strides=(2, 2))(nn.silu(h))
        else:
            h = nn.Conv(WIDTH, (3, 3))(larger(nn.silu(h), self.way))
        return nn.Conv(3, (1, 1))(jnp.concatenate([x, h], axis=-1))


class UNet(nnx.Module):
    def __init__(self, way: str, rngs: nnx.Rngs):
        self.way = way
        self.into, self.down = (
            nnx.Conv(3, WIDTH, (3, 3), rngs=rngs),
            nnx.Conv(WIDTH, 2 * WIDTH, (3, 3), strides=2, rngs=rngs),
        )
        self.norm, self.time = nnx.GroupNorm(WIDTH, num_groups=2, rngs=rngs), nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        if way == "transposed":
            self.up = nnx.ConvTranspose(2 * WIDTH, WIDTH, (2, 2), strides=(2, 2), rngs=rngs)
        else:
            self.up = nnx.Conv(2 * WIDTH, WIDTH, (3, 3), rngs=rngs)
        self.out = nnx.Conv(2 * WIDTH, 3, (1, 1), rngs=rngs)

    def __call__(self, images, steps):
        x = self.into(images)
        h = nnx.silu(self.norm(x)) + self.time(time_embedding(steps))[:, None, None]
        h = nnx.silu(self.down(h))
        h = self.up(h if self.way == "transposed" else larger(h, self.way))
        return self.out(jnp.concatenate([x, h], axis=-1))


IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(1, SIDE, SIDE, 3)), jnp.float32)
STEPS = jnp.asarray([7.0])


@pytest.mark.slow
@WAYS
def test_linen(equal, variables, way):
    equal(LinenUNet(way), variables(LinenUNet(way), IMAGES, STEPS), IMAGES, STEPS)


@WAYS
def test_nnx(equal, filled, way):
    equal(filled(partial(UNet, way)), IMAGES, STEPS)


@pytest.mark.parametrize("way", ["nearest", "bilinear", "cubic"])
def test_resizing_alone(equal, way):
    equal(lambda x: larger(x, way), IMAGES)
