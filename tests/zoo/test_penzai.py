"""penzai's Llama, as it is installed: named axes, parameters taken out of the model, and its cached sampling mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small

import wsc

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of the packages that it imports
IDS = jnp.asarray([[1, 7, 3, 22, 40, 5]])


@pytest.fixture(scope="module")
def pz():
    return pytest.importorskip("penzai.pz", reason="needs penzai: pip install '.[zoo]'")


@pytest.fixture(params=[False, True], ids=["layers", "stacked"])
def llama(request, pz):
    """A Llama of two layers, apart or stacked."""
    from penzai.models.transformer.variants import llamalike_common

    config = llamalike_common.LlamalikeTransformerConfig(
        num_kv_heads=2,
        query_head_multiplier=2,
        embedding_dim=16,
        projection_dim=8,
        mlp_hidden_dim=32,
        num_decoder_blocks=2,
        vocab_size=48,
        mlp_variant="swiglu",
        tie_embedder_and_logits=False,
        use_layer_stack=request.param,
    )
    return llamalike_common.build_llamalike_transformer(config, init_base_rng=jax.random.key(0))


def named(pz, ids):
    return pz.nx.wrap(ids, "batch", "seq")


def uncompiled(pz, llama):
    return np.asarray(llama(named(pz, IDS)).unwrap("batch", "seq", "vocabulary"))


@pytest.mark.parametrize("order", ["xla", "fabric"])
def test_forward(pz, llama, order):
    unbound, parameters = pz.unbind_params(llama, freeze=True)
    parameters = {p.label: p for p in parameters}

    def forward(parameters, ids):
        return pz.bind_variables(unbound, parameters.values())(ids)

    exe = wsc.compile(forward, parameters, named(pz, IDS), wafer=small(usable=16384), order=order)
    found, telemetry = exe(parameters, named(pz, IDS))
    expected = uncompiled(pz, llama)
    found = found.unwrap("batch", "seq", "vocabulary")
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5 * np.abs(expected).max())
    assert telemetry.cycles > 0


@pytest.mark.parametrize("order", ["xla", "fabric"])
def test_decode(pz, llama, order):
    """Its sampling mode keeps caches in variables; taken out, they are arguments and results."""
    from penzai.models.transformer.sampling_mode import KVCachingTransformerLM

    sampler = KVCachingTransformerLM.from_uncached(llama, cache_len=8, batch_axes={"batch": 1}, pad_id=0)
    unbound, variables = pz.unbind_variables(sampler, freeze=True)
    parameters = {v.label: v for v in variables if isinstance(v, pz.ParameterValue)}
    state = {v.label: v for v in variables if not isinstance(v, pz.ParameterValue)}

    def step(parameters, state, ids):
        state = {label: v.unfreeze_as_copy() for label, v in state.items()}
        found = pz.bind_variables(unbound, [*parameters.values(), *state.values()])(ids)
        return found, {label: v.freeze() for label, v in state.items()}

    expected = uncompiled(pz, llama)
    options = {"wafer": small(usable=16384), "order": order, "weight_argnums": 0}
    args = (parameters, state, named(pz, IDS[:, :3]))
    (logits, state), _ = wsc.compile(step, *args, **options)(*args)
    decode = None
    for at in range(3, IDS.shape[1]):
        args = (parameters, state, named(pz, IDS[:, at : at + 1]))
        decode = decode or wsc.compile(step, *args, **options)
        (logits, state), telemetry = decode(*args)
        found = logits.unwrap("batch", "seq", "vocabulary")[:, 0]
        np.testing.assert_allclose(found, expected[:, at], rtol=2e-5, atol=2e-5 * np.abs(expected).max())
        assert telemetry.cycles > 0


def test_layers_are_stages_and_weights_stored_once(pz, llama):
    unbound, parameters = pz.unbind_params(llama, freeze=True)
    parameters = {p.label: p for p in parameters}
    exe = wsc.compile(
        lambda p, ids: pz.bind_variables(unbound, p.values())(ids),
        parameters,
        named(pz, IDS),
        wafer=small(usable=16384),
    )
    assert exe.memory_analysis().weight_bytes == sum(a.nbytes for a in jax.tree.leaves(parameters))
    assert len(exe.program.stages) == 4
