"""Training while weights stream: what is compiled computes the layer, times are the formula."""

import dataclasses
import itertools
import json
import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import assert_close, assert_within_sram, normal, small, sums_over_pes
from typer.testing import CliRunner

import wsc
from wsc import streaming_layer
from wsc.machine.cost import cost
from wsc.models import Llama, LlamaConfig
from wsc.streaming import levels, streamed
from wsc.streaming_schedule import WAYS, Piece, Schedule, _bands

TINY = LlamaConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    dtype="float32",
)
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
WAFER = small(16, 12, 16384)


@cache
def plan(**changes) -> wsc.Streamed:
    options = {"sequence": 16, "batch": 2, "wafers": (1, 2, 16), "wafer": WAFER}
    return streamed(Llama.abstract(TINY), **(options | changes))


@pytest.fixture(scope="module")
def tiny() -> Llama:
    return Llama(TINY, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", ["forward", "backward", "head"])
def test_a_compiled_piece_computes_what_jax_does(tiny, name):
    """Cut over both axes of a small wafer, products as weights stream."""
    fn, _, arguments = streaming_layer.programs(tiny)[name]
    kernel = tiny.lm_head.kernel[...]
    weights = {"layers": [{"norm": tiny.norm, "kernel": kernel} if name == "head" else tiny.layers[0]]}
    values = {"x": normal(2, 8, 32), "targets": jnp.arange(16).reshape(2, 8) * 5}
    call = weights, *(values[a] for a in arguments)
    where: dict = {"wafer": small(16, 12, 32768), "grid": (16, 12), "weight_argnums": 0}
    exe = wsc.compile(fn, *call, strategy="streaming", **where)
    assert_close(exe(*call)[0], jax.jit(fn)(*call), 1e-4)
    assert_within_sram(exe.program)
    cut = [at for _, op in exe.program.ops() if op.name == "dot_general" for at in op.outs if at is not None]
    assert any(at.parts.y > 1 and at.parts.x > 1 for at in cut)
    assert "dot_general" in sums_over_pes(exe.program)


def test_the_layer_is_the_layer_of_the_model(tiny):
    """Against the model's own block, of a text without a cache."""
    x = normal(2, 8, 32)
    angles = jnp.arange(8)[:, None] * wsc.models.llama.inverse_frequencies(8, TINY.rope_theta, None)
    rope = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    expected = tiny.layers[0](x, rope, None)[0]
    found = streaming_layer.forward({"layers": [tiny.layers[0]]}, TINY, x)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_loss_is_the_mean_negative_log_likelihood(tiny):
    x, targets = normal(2, 8, 32), jnp.arange(16).reshape(2, 8)
    head = {"layers": [{"norm": tiny.norm, "kernel": tiny.lm_head.kernel[...]}]}
    logits = np.asarray(tiny.lm_head(tiny.norm(x)), np.float64)
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = -np.mean(np.log(np.take_along_axis(share, np.asarray(targets)[..., None], -1)))
    assert float(streaming_layer.loss(head, x, targets)) == pytest.approx(expected, rel=1e-5)


def test_the_time_of_a_step_by_hand():
    """Two layers: the first bound by its work of 3 s, the second by its 600 bytes out at 100 B/s; two passes."""
    wafer = dataclasses.replace(wsc.WSE3, clock_hz=10.0, link_bytes_per_second=100.0, link_seconds=0.5)
    pieces = (Piece("a", 1, 30.0, 100, 0, 0), Piece("b", 2, 10.0, 300, 600, 0))
    found = Schedule(1, 2, 1, pieces, 0.0)
    assert found.seconds(wafer) == pytest.approx(2 * (3 + 2 * 6) + 2 * 0.5)
    assert found.seconds(wafer, levels=2) == pytest.approx(2 * (3 + 2 * 6) + 2 * 3 * 0.5)
    assert found.link_seconds(wafer) == pytest.approx(2 * (1 + 2 * 6))
    assert found.work_seconds(wafer) == pytest.approx(2 * (3 + 2 * 1))


@pytest.mark.parametrize("wafers", [1, 2, 3, 4, 5, 16, 17, 64, 192])
def test_levels_of_the_tree(wafers):
    assert levels(wafers) == next(n for n in range(9) if 4**n >= wafers)


@pytest.mark.parametrize("scaling", ["weak", "strong"])
def test_more_wafers_never_give_more_for_each(scaling):
    found = plan(scaling=scaling, wafers=(1, 2, 4), batch=4)
    each = [r / n for r, n in zip(found.tokens_per_second, found.wafers)]
    assert all(a >= b for a, b in itertools.pairwise(each))
    assert found.speedup[0] == 1 and all(s <= n * (1 + 1e-9) for s, n in zip(found.speedup, found.wafers))


def test_one_wafer_has_no_tree():
    found = plan(wafers=(1,))
    assert found.seconds[0] == pytest.approx(found.schedules[0].seconds(WAFER))
    assert found.seconds[0] == plan(wafers=(1, 64)).seconds[0]
    later = plan(wafers=(64,)).seconds[0]
    assert later - found.seconds[0] == pytest.approx(2 * 3 * WAFER.link_seconds, rel=1e-6)


def test_a_slow_link_bounds_a_step():
    """Weights in twice, gradients out beside the second time: the link is full duplex."""
    wafer = dataclasses.replace(WAFER, link_bytes_per_second=1e5, link_seconds=0.0)
    found = plan(wafer=wafer, batch=1, wafers=(1,))
    layer = 4 * (32 * (2 * 32 + 2 * 16) + 3 * 32 * 48 + 2 * 32)
    head, embedding = 4 * (96 * 32 + 32), 4 * 16 * 32
    assert found.seconds[0] == pytest.approx((3 * 2 * layer + head + embedding) / 1e5, rel=1e-9)
    assert found.as_dict()["rows"][0]["link_seconds"] == pytest.approx(found.seconds[0])


def test_weights_stream_anew_for_every_microbatch():
    whole, parts = plan(batch=4, wafers=(1,)), plan(batch=4, microbatch=1, wafers=(1,))
    assert parts.schedules[0].passes == 4 and whole.schedules[0].passes == 1
    assert parts.schedules[0].used_bytes < whole.schedules[0].used_bytes
    alone = plan(batch=1, wafers=(1,)).seconds[0] - 2 * WAFER.link_seconds
    assert parts.seconds[0] == pytest.approx(4 * alone + 2 * WAFER.link_seconds)


def test_inputs_kept_outside_cost_the_link_and_free_the_sram():
    inside, outside = plan(batch=4, wafers=(1,)).schedules[0], plan(batch=4, wafers=(1,), keep="memory").schedules[0]
    layer = {p.name: p for p in outside.pieces}
    assert layer["forward"].outward == 4 * 16 * 32 * 4
    assert outside.used_bytes < inside.used_bytes
    assert outside.link_seconds(WAFER) > inside.link_seconds(WAFER)


def test_what_does_not_fit_is_refused_with_a_way_on():
    tight = small(16, 12, 4000)
    with pytest.raises(wsc.FitError, match=r"8 sequences of 16 tokens take .*\(microbatch\) or keep='memory'"):
        plan(wafer=tight, batch=8, wafers=(1,))
    assert (
        plan(wafer=tight, batch=8, microbatch=1, keep="memory", wafers=(1,)).schedules[0].used_bytes <= tight.sram_bytes
    )


def test_peak_bytes_by_hand():
    """y = tanh(x W), W [8, 8]: x and y, 4 x 8 floats over 2 x 2 PEs, and one round of the product on its way."""
    wafer = small(2, 2, 16384)
    shapes = ({"w": normal(8, 8)}, normal(1, 4, 8))
    exe = wsc.compile(
        lambda w, x: jnp.tanh(x @ w["w"]), *shapes, wafer=wafer, strategy="streaming", grid=(2, 2), weight_argnums=0
    )
    (product,) = [op for _, op in exe.program.ops() if op.name == "dot_general"]
    tile, words = 4 * 2 * 4, 4 * 4 + 2 * 4  # [2, 4] floats a PE; weights [4, 4] and sums [2, 4] of a round
    assert str(product.outs[0]) == "[- x2 y2]"
    passing = 4 * (2 * words + streaming_layer.ROUND_WORDS)
    assert streaming_layer.peak_bytes(exe.program, False) == tile + tile + passing


def test_all_flops_are_counted():
    """Six a weight and token for the gradients, two more for what is computed again; attention comes on top."""
    found = plan(batch=4, wafers=(1,)).schedules[0]
    weights = TINY.num_hidden_layers * (32 * (2 * 32 + 2 * 16) + 3 * 32 * 48)
    tokens, attention = 4 * 16, 3 * 4 * 4 * 16 * 16 * 8 * 4 * 4
    exact = tokens * (8 * weights + 6 * 96 * 32) + attention
    assert found.flops == pytest.approx(exact, rel=0.25) and found.flops > 0.95 * exact


def test_the_report_prints_and_is_plain_data():
    found = plan(name="tiny")
    data = json.loads(json.dumps(found.as_dict()))
    assert [r["wafers"] for r in data["rows"]] == [1, 2, 16] and data["rows"][2]["levels"] == 2
    assert "training of tiny" in str(found) and "<pre" in found._repr_html_()
    assert all(math.isfinite(r["seconds"]) and 0 < r["utilization"] < 1 for r in data["rows"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"sequence": True}, "sequence is True"),
        ({"microbatch": 3}, "not a multiple of the microbatch of 3"),
        ({"wafers": (2, 1)}, "from few to many"),
        ({"wafers": ()}, "from few to many"),
        ({"scaling": "strong", "wafers": (1, 3)}, "not shared evenly by 3"),
        ({"scaling": "linear"}, "scaling is 'linear'"),
        ({"keep": "disk"}, "keep 'disk'"),
        ({"wafer": "wse3"}, "must be a wsc.Wafer"),
    ],
)
def test_wrong_arguments_are_refused(changes, message):
    with pytest.raises(wsc.ArgumentError, match=message):
        plan(**changes)


def test_only_models_with_layers():
    with pytest.raises(wsc.ArgumentError, match=r"must be a wsc\.models\.Llama"):
        streamed(lambda x: x)


def test_bands_are_equal_shares_and_few():
    assert _bands(1, wsc.WSE3) == [1]
    for micro in (6, 8, 60, 97, 720):
        found = _bands(micro, wsc.WSE3)
        assert found[0] == 1 and len(found) <= WAYS and all(micro % b == 0 for b in found)


def test_command_line(tmp_path):
    from wsc.cli import app

    (tmp_path / "config.json").write_text(json.dumps({k: getattr(TINY, k) for k in SIZES}))
    picture = tmp_path / "out.png"
    call = ["stream", str(tmp_path), "--wafers", "1..4", "--batch", "2", "--sequence", "16", "--json"]
    found = CliRunner().invoke(app, [*call, "--plot", str(picture)])
    assert found.exit_code == 0, found.output
    assert [r["wafers"] for r in json.loads(found.stdout)["rows"]] == [1, 2, 4]
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_gradients_of_a_layer_leave_the_wafer_summed_over_bands():
    one, two = (streaming_layer.work(Llama.abstract(TINY), "backward", 4, 16, b, WAFER) for b in (1, 2))
    assert two.program.stages[0].region.height == 8 and one.program.stages[0].region.height == 16
    alone = sum(float(cost(s, WAFER).cycles) for _, op in two.program.ops() for s in op.steps)
    assert two.cycles > alone
