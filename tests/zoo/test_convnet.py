"""Convolutional networks as they are after training: strides, batch norm of kept averages, pools, residuals, groups."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

SIDE, WIDTH, CLASSES = 8, 8, 5


class LinenConvNet(nn.Module):
    @nn.compact
    def __call__(self, images, train: bool = False):
        x = nn.Conv(WIDTH, (3, 3), use_bias=False)(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        h = nn.Conv(2 * WIDTH, (3, 3), strides=(2, 2), padding="SAME", use_bias=False)(x)
        h = nn.BatchNorm(use_running_average=not train)(h)
        x = nn.relu(h + nn.Conv(2 * WIDTH, (1, 1), strides=2)(x))
        x = nn.Conv(2 * WIDTH, (3, 3), feature_group_count=2 * WIDTH)(x)  # depthwise
        x = nn.relu(nn.GroupNorm(num_groups=4)(x))
        x = nn.avg_pool(x, (2, 2), strides=(1, 1), padding="SAME")
        return nn.Dense(CLASSES)(x.mean(axis=(1, 2)))


class ConvNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.Conv(3, WIDTH, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
        self.down = nnx.Conv(WIDTH, 2 * WIDTH, (3, 3), strides=2, rngs=rngs)
        self.wide = nnx.Conv(2 * WIDTH, 2 * WIDTH, (3, 3), kernel_dilation=2, rngs=rngs)
        self.head = nnx.Linear(2 * WIDTH, CLASSES, rngs=rngs)

    def __call__(self, images):
        x = nnx.max_pool(nnx.relu(self.norm(self.stem(images))), (3, 3), strides=(2, 2), padding="SAME")
        x = nnx.silu(self.down(x))
        x = nnx.avg_pool(x + nnx.leaky_relu(self.wide(x)), (2, 2))
        return self.head(x.reshape(x.shape[0], -1, 2 * WIDTH).max(axis=1))


class Audio(nnx.Module):
    """One dimension, causal and strided, as before a speech model."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Conv(4, WIDTH, (3,), padding="CAUSAL", rngs=rngs)
        self.second = nnx.Conv(WIDTH, WIDTH, (3,), strides=2, padding=1, rngs=rngs)

    def __call__(self, frames):
        return nnx.gelu(self.second(nnx.gelu(self.first(frames))))


IMAGES = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, SIDE, SIDE, 3)), jnp.float32)


@pytest.mark.slow
def test_linen(equal, variables):
    equal(LinenConvNet(), variables(LinenConvNet(), IMAGES), IMAGES)


def test_nnx_in_eval(equal, filled):
    model = filled(ConvNet)
    equal(model, IMAGES)


@pytest.mark.parametrize("time", [6, 7])
def test_one_dimension(equal, filled, time):
    frames = jnp.asarray(np.random.default_rng(1).normal(size=(1, time, 4)), jnp.float32)
    equal(filled(Audio), frames)
