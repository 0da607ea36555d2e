"""The main job: trained Llamas through the placed program, against values that others computed."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import wsc

GOLDEN = Path(__file__).with_name("data") / "smollm2_golden.npz"  # by transformers, see make_golden.py


@pytest.fixture(scope="module")
def compiled(smollm2):
    """SmolLM2 on a WSE-3, prefill in chunks of the prompt's five tokens."""
    model, _ = smollm2
    return wsc.compile(model, context=64, prefill_chunk=5)


def test_prefill_then_decode_gives_the_logits_of_transformers(compiled):
    golden = np.load(GOLDEN)
    ids = jnp.array(golden["ids"][None], jnp.int32)
    (logits, cache), telemetry = compiled.prefill(ids[:, :5], compiled.model.init_cache(context=64))
    rows = [logits[0]]
    for i in range(5, ids.shape[1]):
        (logits, cache), telemetry = compiled(ids[:, i : i + 1], cache)
        rows.append(logits[0])
    got = np.concatenate(rows).astype(np.float64)
    np.testing.assert_allclose(got[:, golden["columns"]], golden["logits"], atol=2e-3)
    top = got.max(1)
    np.testing.assert_allclose(top + np.log(np.exp(got - top[:, None]).sum(1)), golden["sums"], atol=2e-3)
    assert telemetry.cycles > 0


def test_the_capital_of_france(compiled, smollm2):
    _, tokenizer = smollm2
    ids = np.load(GOLDEN)["ids"].tolist()
    assert list(compiled.generate_ids(tokenizer.encode("The capital of France is"), 30)) == ids[5:]
    text = compiled.generate(tokenizer, "The capital of France is", max_new_tokens=32)
    assert text.startswith(" Paris.")


def test_every_byte_has_a_place(compiled):
    """The account of weights, and the fullest PE, both from the memory map."""
    m = compiled.memory_analysis()
    assert m.weight_bytes == 4 * 134_515_008
    stored = sum(w.stored_bytes for s in compiled.program.stages for w in s.weights)
    stated = sum(w.nbytes * w.copies for s in compiled.program.stages for w in s.weights)
    assert stored == m.stored_weight_bytes == stated + m.padding_bytes and m.padding_bytes >= 0
    for program in (compiled.program, compiled.prefill.program):
        for stage in program.stages:
            ends = [0, *(a.end for a in stage.memory)]
            assert all(a.offset >= end for a, end in zip(stage.memory, ends, strict=False))
            assert stage.memory[0].kind == "code" and ends[-1] <= 49_152


@pytest.mark.parametrize("order", ["fabric", "xla"])
def test_stories_through_the_placed_program(stories, order):
    model, _ = wsc.models.load(stories / "stories260K.bin", progress=False)
    golden = np.load(stories / "golden_f64.npz")
    prompt = golden["prompt"]
    exe = wsc.compile(model, context=256, prefill_chunk=len(prompt), order=order)
    (logits, _), _ = exe.prefill(jnp.array(prompt[None], jnp.int32), model.init_cache(context=256))
    np.testing.assert_allclose(logits[0], golden["prompt_logits"], atol=1e-4)
    greedy = golden["greedy_from_bos"].tolist()
    assert list(exe.generate_ids(greedy[:1], 128)) == greedy[1:]
