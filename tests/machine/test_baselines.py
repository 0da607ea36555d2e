"""The closed forms of GPUs and of the Groq chip against published speeds: fitted rows, and rows held out."""

import dataclasses
import math
from itertools import pairwise

import jax
import jax.numpy as jnp
import pytest

from wsc.errors import ArgumentError
from wsc.machine.baselines import (
    A100,
    ACCELERATORS,
    B200,
    GROQ_LPU,
    H100,
    H200,
    Accelerator,
    Serving,
    chips_needed,
    decode,
    fit_gpu,
    of_wafer,
)
from wsc.machine.wafer import KINDS, WSE3

WEIGHTS = 16.06e9  # B, Llama-3-8B in 16 bits
KV = 128 * 1024  # B of cache a token, 16 bits
AVERAGE = KV * (1024 + 512)  # B a user: 1,024 tokens in, 1,024 out, halfway through
FLOPS = 15e9  # a token, two for each of 7.5e9 parameters that multiply

# One H100, Llama-3-8B fp16, input and output 1,024 tokens: batch, tokens/s of one user as published.
VLLM = [(1, 126.5), (16, 92.9), (32, 78.4)]
TENSORRT = [(1, 132.5), (16, 100.8), (32, 82.0)]
H100_ROWS = VLLM + TENSORRT

# LLaMA3-8B decode at context 4,096, tokens/s of one user: WaferLLM (OSDI 2025), its GPU rows.
ONE_A100, EIGHT_A100 = 78.9, 260.4
# Llama-3.1-8B with 8-bit weights, September 2024; context not published.
GROQ_8B = 751.0


def speed(*args, **kwargs) -> float:
    return decode(*args, **kwargs).tokens_per_second_per_user


def test_the_constants_are_what_the_fit_gives():
    efficiency, seconds = fit_gpu([(WEIGHTS, AVERAGE, batch, rate) for batch, rate in H100_ROWS])
    assert (f"{efficiency:.2g}", f"{seconds:.2g}") == (f"{H100.efficiency:.2g}", f"{H100.sequence_seconds:.2g}")


def test_the_fit_finds_what_made_the_rows():
    chip = dataclasses.replace(H200, efficiency=0.5, sequence_seconds=1e-4)
    rows = [(w, AVERAGE, b, speed(chip, w, AVERAGE, 0, b)) for w in (8e9, 16e9) for b in (1, 4, 64)]
    assert fit_gpu(rows, H200.bytes_per_second) == pytest.approx((0.5, 1e-4))


@pytest.mark.parametrize(("batch", "published"), H100_ROWS)
def test_h100_rows(batch, published):
    assert speed(H100, WEIGHTS, AVERAGE, FLOPS, batch) == pytest.approx(published, rel=0.07)


def test_held_out_one_a100():
    """The H100's efficiency carried to another chip and a longer context: nothing here was fitted to this row."""
    assert speed(A100, WEIGHTS, 4096 * KV, FLOPS, 1) == pytest.approx(ONE_A100, rel=0.03)


def test_sync_seconds_is_what_eight_a100_need():
    free = decode(dataclasses.replace(A100, sync_seconds=0.0), WEIGHTS, 4096 * KV, FLOPS, 1, chips=8, layers=32)
    assert f"{(1 / EIGHT_A100 - free.seconds) / 64:.2g}" == f"{A100.sync_seconds:.2g}"
    assert speed(A100, WEIGHTS, 4096 * KV, FLOPS, 1, chips=8, layers=32) == pytest.approx(EIGHT_A100, rel=0.01)


def test_groqs_efficiency_is_fitted_to_its_one_row():
    bytes_read = 8.03e9 + AVERAGE
    assert f"{bytes_read * GROQ_8B / GROQ_LPU.bytes_per_second:.2g}" == f"{GROQ_LPU.efficiency:.2g}"
    served = decode(GROQ_LPU, 8.03e9, AVERAGE, FLOPS, 1, chips=None, layers=32)
    assert served.tokens_per_second_per_user == pytest.approx(GROQ_8B, rel=0.01)
    assert served.chips == 36  # 8.23 GB in 230 MB pieces


def test_more_chips_in_a_row_serve_no_faster():
    assert speed(GROQ_LPU, 8e9, 0, 0, 1, chips=70) == speed(GROQ_LPU, 8e9, 0, 0, 1, chips=35)
    assert speed(H100, 8e9, 0, 0, 1, chips=2) > speed(H100, 8e9, 0, 0, 1)


def test_70b_needs_two_gpus_and_576_lpus_hold_it():
    assert chips_needed(H100, 141e9) == 2  # a cache of 19 GB fits beside it
    assert chips_needed(H100, 141e9, 1e9, batch=19) == 2
    assert chips_needed(H100, 141e9, 1e9, batch=20) == 3
    assert chips_needed(GROQ_LPU, 70.6e9) <= 576  # vendor: 576 chips for 70B


def test_units():
    s = Serving(name="s", chips=2, batch=10, seconds=0.01, watts=500.0, dollars_per_hour=3.6)
    assert s.tokens_per_second_per_user == pytest.approx(100)
    assert s.tokens_per_second == pytest.approx(1000)
    assert s.tokens_per_joule == pytest.approx(2)
    assert s.dollars_per_million_tokens == pytest.approx(1.0)  # 3.6 $/h is 0.001 $/s, 1,000 s a million


def test_watts_and_rent_are_of_all_chips():
    s = decode(A100, WEIGHTS, AVERAGE, FLOPS, batch=4, chips=8, layers=32)
    assert (s.name, s.chips, s.batch) == ("A100", 8, 4)
    assert s.watts == 8 * A100.watts and s.dollars_per_hour == 8 * A100.dollars_per_hour


def test_arithmetic_bounds_a_large_batch():
    """Past about 1,000 users the multiplications, not the weights, take the time."""
    s = decode(dataclasses.replace(H100, sequence_seconds=0.0), WEIGHTS, 0, FLOPS, batch=4096)
    assert s.seconds == pytest.approx(FLOPS * 4096 / 989e12)


@pytest.mark.parametrize("chip", ACCELERATORS.values(), ids=lambda c: c.name)
@pytest.mark.parametrize("field", ["bytes_per_second", "efficiency", "flops", "sequence_seconds", "sync_seconds"])
def test_better_numbers_never_slow_a_step(chip, field):
    better = 0.5 if field.endswith("_seconds") else 1.5
    faster = dataclasses.replace(chip, **{field: getattr(chip, field) * better})
    for batch in (1, 64, 4096):
        args = (WEIGHTS, AVERAGE, FLOPS, batch, None, 32)
        assert decode(faster, *args).seconds <= decode(chip, *args).seconds


def test_newer_gpus_are_faster():
    rates = [speed(c, WEIGHTS, AVERAGE, FLOPS, 1) for c in (A100, H100, H200, B200)]
    assert rates == sorted(rates)


def test_a_larger_batch_costs_the_user_and_helps_the_total():
    rows = [decode(H100, WEIGHTS, AVERAGE, FLOPS, batch) for batch in (1, 2, 16, 32, 128)]
    assert all(a.tokens_per_second_per_user > b.tokens_per_second_per_user for a, b in pairwise(rows))
    assert all(a.tokens_per_second < b.tokens_per_second for a, b in pairwise(rows))
    assert all(a.dollars_per_million_tokens > b.dollars_per_million_tokens for a, b in pairwise(rows))


def test_the_wafer_stands_in_the_same_table():
    """8B on one wafer at 1,800 tokens/s (August 2024), 23 kW, modelled at $42 an hour."""
    s = of_wafer(WSE3, seconds=1 / 1800, batch=26)
    assert s.tokens_per_second_per_user == pytest.approx(1800)
    assert s.tokens_per_joule == pytest.approx(26 * 1800 / 23_000)
    assert s.dollars_per_million_tokens == pytest.approx(42 / 3600 / (26 * 1800) * 1e6)
    cheap = dataclasses.replace(WSE3, busy_watts=20_000.0, dollars_per_hour=10.0)
    four = of_wafer(cheap, 1 / 450, 13, wafers=4)
    assert (four.chips, four.watts, four.dollars_per_hour) == (4, 80_000, 40)


@pytest.mark.parametrize("chip", ACCELERATORS.values(), ids=lambda c: c.name)
def test_every_number_has_unit_kind_and_source(chip):
    rows = chip.sources()
    assert {r["name"] for r in rows} == {f.name for f in dataclasses.fields(Accelerator)} - {"name", "pipelined"}
    for row in rows:
        assert row["kind"] in KINDS
        assert row["unit"] and len(row["source"]) > 10
        assert row["value"] == getattr(chip, row["name"])
        assert "set by" not in row["source"]
    assert chip is H100 or not any("vendor" in r["source"] and "H100" in r["source"] for r in rows)


def test_a_replaced_number_does_not_keep_its_source():
    rows = {r["name"]: r for r in dataclasses.replace(A100, watts=300.0).sources()}
    assert rows["watts"]["kind"] == "assumed" and rows["watts"]["source"].startswith("set by")
    assert rows["flops"]["kind"] == "published"


def test_an_accelerator_is_a_value_and_a_pytree():
    assert hash(dataclasses.replace(H100)) == hash(H100)
    assert jax.tree.map(lambda v: v, GROQ_LPU) == GROQ_LPU
    with pytest.raises(dataclasses.FrozenInstanceError):
        H100.watts = 3


def test_plain_numbers_give_plain_numbers():
    s = decode(H100, 16_060_000_000, AVERAGE, FLOPS, 16, chips=None, layers=32)
    assert type(s.seconds) is type(s.tokens_per_second) is type(s.tokens_per_joule) is float
    assert type(s.chips) is int


def test_vmap_over_batches_and_chips():
    """16 users' cache is 3.2e9 B: a product of 32-bit integers would wrap."""
    batches = jnp.array([1, 16, 32])
    rates = jax.vmap(lambda b: decode(H100, WEIGHTS, AVERAGE, FLOPS, b).tokens_per_second)(batches)
    assert rates == pytest.approx([b * speed(H100, WEIGHTS, AVERAGE, FLOPS, b) for b in (1, 16, 32)], rel=1e-5)
    served = jax.vmap(lambda n: decode(A100, WEIGHTS, AVERAGE, FLOPS, 1, n, 32))(jnp.array([1, 8]))
    wanted = [decode(A100, WEIGHTS, AVERAGE, FLOPS, 1, n, 32).seconds for n in (1, 8)]
    assert served.seconds == pytest.approx(wanted, rel=1e-5)
    needed = jax.vmap(lambda b: decode(H100, WEIGHTS, 1e9, FLOPS, b, chips=None).chips)(batches * 8)
    assert needed.tolist() == [chips_needed(H100, WEIGHTS, 1e9, b) for b in (8, 128, 256)]


def test_vmap_and_grad_over_hardware():
    def seconds(chip):
        return decode(chip, WEIGHTS, AVERAGE, FLOPS, 16, 2, 32).seconds

    slope = jax.jit(jax.grad(seconds))(H100)
    assert slope.sequence_seconds == pytest.approx(16)
    assert slope.sync_seconds == pytest.approx(64)
    assert slope.bytes_per_second < 0 and slope.flops == 0  # memory is the slower of the two
    both = jax.tree.map(lambda *v: jnp.array(v), H100, dataclasses.replace(H200, name="H100"))
    assert jax.vmap(seconds)(both) == pytest.approx([seconds(H100), seconds(H200)], rel=1e-5)


GOOD = {"weight_bytes": 16e9, "kv_bytes": 1e8, "flops": 15e9, "batch": 1, "chips": 1, "layers": 32}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch", 0),
        ("batch", 1.5),
        ("batch", "two"),
        ("chips", 0),
        ("chips", -1),
        ("chips", 2.5),
        ("weight_bytes", -1.0),
        ("weight_bytes", 0),
        ("weight_bytes", None),
        ("kv_bytes", -1),
        ("kv_bytes", math.nan),
        ("flops", -1.0),
        ("flops", math.inf),
        ("layers", -2),
    ],
)
def test_a_bad_argument_is_named(name, value):
    with pytest.raises(ArgumentError, match=f"{name} is"):
        decode(H100, **GOOD | {name: value})


def test_bad_arguments_elsewhere():
    with pytest.raises(ArgumentError, match="efficiency of H100"):
        dataclasses.replace(H100, efficiency=1.2)
    with pytest.raises(ArgumentError, match="watts of H100 is 0"):
        dataclasses.replace(H100, watts=0)
    with pytest.raises(ArgumentError, match="seconds is 0"):
        of_wafer(WSE3, 0, 1)
    with pytest.raises(ArgumentError, match="wafers is 0"):
        of_wafer(WSE3, 1.0, 1, wafers=0)
    with pytest.raises(ArgumentError, match="batch is 0"):
        chips_needed(H100, 1e9, batch=0)


@pytest.mark.parametrize("rows", [[], [(16e9, 0, 1, 100.0)], [(16e9, 0, 4, 100.0), (16e9, 0, 4, 90.0)]])
def test_rows_that_tell_too_little(rows):
    with pytest.raises(ArgumentError, match="at least two batches"):
        fit_gpu(rows)


@pytest.mark.parametrize("row", [(16e9, 0, 1, 0.0), (-1, 0, 1, 9.0), (16e9, 0, 1, math.nan)])
def test_a_row_that_cannot_be(row):
    with pytest.raises(ArgumentError, match="got a row"):
        fit_gpu([row, (16e9, 0, 8, 80.0)])
