"""transformers' Flax Llama, as it is installed (before transformers 5): forward, and decoding over its cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small

import wsc

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of the packages that it imports
CONTEXT, LAYERS, KV_HEADS = 8, 2, 2
IDS = jnp.asarray([[1, 7, 3, 22, 40, 5]])


@pytest.fixture(scope="module")
def model():
    transformers = pytest.importorskip("transformers", reason="needs transformers before 5: pip install '.[zoo]'")
    if not hasattr(transformers, "FlaxLlamaForCausalLM"):
        pytest.skip("transformers 5 has no Flax models: pip install '.[zoo]'")
    config = transformers.LlamaConfig(
        vocab_size=48,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=16,
    )
    return transformers.FlaxLlamaForCausalLM(config, seed=0)


def test_forward(equal, model):
    exe = equal(lambda params, ids: model(ids, params=params), model.params, IDS)
    names = [s.name for s in exe.program.stages]
    assert names == ["model.embed_tokens", "model.layers[0]", "model.layers[1]", "lm_head"]
    assert type(exe(model.params, IDS)[0]) is type(model(IDS))  # its own class of results comes back


def test_all_hidden_states(equal, model):
    equal(lambda p, ids: model(ids, params=p, output_hidden_states=True, return_dict=False), model.params, IDS)


def test_the_linen_module_inside(equal, model):
    """The module itself, as a linen module with its variables."""
    ids, time = IDS, IDS.shape[1]
    places = jnp.arange(time)[None]
    equal(model.module, {"params": model.params}, ids, jnp.ones_like(ids), places, cut=True)


@pytest.mark.parametrize("order", ["xla", "fabric"])
def test_decode(model, order):
    """As `generate` does it: a prompt into an empty cache, then one token at a time; against the uncached model."""

    def step(params, ids, cache, mask, positions):
        found = model(ids, params=params, past_key_values=cache, attention_mask=mask, position_ids=positions)
        return found.logits, found.past_key_values

    expected = np.asarray(model(IDS).logits)
    scale, options = np.abs(expected).max(), {"wafer": small(usable=16384), "order": order}
    inputs = model.prepare_inputs_for_generation(IDS[:, :3], CONTEXT)
    args = (model.params, IDS[:, :3], inputs["past_key_values"], inputs["attention_mask"], inputs["position_ids"])
    (logits, cache), _ = wsc.compile(step, *args, **options)(*args)
    np.testing.assert_allclose(logits, expected[:, :3], rtol=2e-5, atol=2e-5 * scale)
    decode = None
    for at in range(3, IDS.shape[1]):
        args = (model.params, IDS[:, at : at + 1], cache, inputs["attention_mask"], jnp.full((1, 1), at))
        decode = decode or wsc.compile(step, *args, **options)
        (logits, cache), telemetry = decode(*args)
        np.testing.assert_allclose(logits[:, 0], expected[:, at], rtol=2e-5, atol=2e-5 * scale)
        assert telemetry.cycles > 0
    found = decode.memory_analysis()
    assert found.weight_bytes == sum(a.nbytes for a in jax.tree.leaves(model.params))
    assert found.state_bytes >= 2 * LAYERS * CONTEXT * KV_HEADS * 4 * 4


def test_called_with_its_own_weights(equal, model):
    """The model object itself: its weights are not among the arguments, and are stored all the same."""
    exe = equal(lambda ids: model(ids).logits, IDS)
    assert exe.memory_analysis().weight_bytes == sum(a.nbytes for a in jax.tree.leaves(model.params))
