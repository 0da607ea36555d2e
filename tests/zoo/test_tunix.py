"""tunix' Llama 3, as it is installed (google-tunix): its forward pass and decoding over its cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small

import wsc

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of the packages that it imports
VOCABULARY, LAYERS, KV_HEADS, HEAD, CONTEXT = 48, 2, 2, 8, 8
IDS = jnp.asarray([[1, 7, 3, 22, 40, 5]])


@pytest.fixture
def make():
    """`make(**changes)`: what makes a small Llama 3 from `nnx.Rngs`."""
    module = pytest.importorskip("tunix.models.llama3.model", reason="needs google-tunix: pip install '.[zoo]'")

    def configured(remat="NONE", **changes):
        sizes = {
            "num_layers": LAYERS,
            "vocab_size": VOCABULARY,
            "embed_dim": 16,
            "hidden_dim": 32,
            "num_heads": 4,
            "head_dim": HEAD,
            "num_kv_heads": KV_HEADS,
            "rope_theta": 10_000,
            "norm_eps": 1e-5,
        }
        config = module.ModelConfig(**sizes, **changes, remat_config=module.RematConfig[remat])
        return lambda rngs: module.Llama3(config, rngs=rngs)

    return configured


def causal(time: int, keys: int, begin: int = 0):
    """(1, time, keys): each token sees those up to itself."""
    return (jnp.arange(keys) <= begin + jnp.arange(time)[:, None])[None]


def empty_cache():
    shape = (1, CONTEXT, KV_HEADS, HEAD)
    layer = {"k": jnp.zeros(shape), "v": jnp.zeros(shape), "end_index": jnp.zeros((1,), jnp.int32)}
    return {f"layer_{i}": layer for i in range(LAYERS)}


@pytest.mark.parametrize("tied", [False, True])
def test_forward(equal, filled, make, tied):
    model, time = filled(make(weight_tying=tied)), IDS.shape[1]
    exe = equal(model, IDS, jnp.arange(time)[None], None, causal(time, time))
    head = "embedder (again)" if tied else "lm_head"
    assert [s.name for s in exe.program.stages] == ["embedder", "layers[0]", "layers[1]", head]


@pytest.mark.parametrize("order", ["xla", "fabric"])
def test_decode(filled, make, order):
    """Three tokens into an empty cache, then one at a time: what the whole text gives without a cache, uncompiled."""
    model, time = filled(make()), IDS.shape[1]
    expected = np.asarray(jax.jit(lambda m, *a: m(*a))(model, IDS, jnp.arange(time)[None], None, causal(time, time))[0])
    options = {"wafer": small(usable=16384), "order": order}
    cache = empty_cache()
    first = (IDS[:, :3], jnp.arange(3)[None], cache, causal(3, CONTEXT))
    (logits, cache), _ = wsc.compile(model, *first, **options)(*first)
    np.testing.assert_allclose(logits, expected[:, :3], rtol=2e-5, atol=2e-5 * np.abs(expected).max())
    decode = None
    for at in range(3, time):
        args = (IDS[:, at : at + 1], jnp.full((1, 1), at), cache, causal(1, CONTEXT, at))
        decode = decode or wsc.compile(model, *args, **options)
        (logits, cache), telemetry = decode(*args)
        np.testing.assert_allclose(logits[:, 0], expected[:, at], rtol=2e-5, atol=2e-5 * np.abs(expected).max())
        assert telemetry.cycles > 0
    assert decode.memory_analysis().state_bytes >= 2 * LAYERS * CONTEXT * KV_HEADS * HEAD * 4


def test_remat(equal, filled, make):
    time = IDS.shape[1]
    equal(filled(make(remat="BLOCK")), IDS, jnp.arange(time)[None], None, causal(time, time))
