"""Intervals, users, room and first tokens against sums by hand, simulated pipelines and programs that fill the PEs."""

import dataclasses
import itertools
import json
import math

import jax
import pytest
from helpers import normal, small

import wsc
from wsc.machine.cost import cost
from wsc.models import Llama, LlamaConfig
from wsc.runtime.telemetry import Telemetry

TINY = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=2)
WAFER = small(40, 40, 12288)
CONTEXTS = (16, 64, 200, 4000)


def compiled(config=TINY, **options):
    options = {"wafer": WAFER, "context": 64} | options
    return wsc.compile(Llama.abstract(config, dtype="float32"), **options)


@pytest.fixture(scope="module")
def exe():
    return compiled()


def by_hand(program) -> list[dict[str, float]]:
    """Cycles of every stage: what brings its input, control, work, and results to the host."""

    def total(steps):
        return sum(float(cost(s, program.wafer).cycles) for s in steps)

    return [
        {
            "move": sum(total(steps) for _, _, steps in stage.arrivals),
            "control": sum(total(op.steps) for op in stage.ops if op.control),
            "work": sum(total(op.steps) for op in stage.ops if not op.control),
            "send": total(stage.departures),
        }
        for stage in program.stages
    ]


def simulate(programs, users: int = 0, hidden: bool = True) -> list[float]:
    """When each run is done, in cycles, event after event: a stage begins to bring in a run when it has sent off the
    one before and the stage before has worked on it. With so many `users` in a closed loop, a user's run begins when
    the last is done. Control is worked out while a stage waits or brings in, if `hidden`; else after."""
    rows = {id(p): by_hand(p) for p in programs}
    free = [0.0] * len(programs[0].stages)
    done: list[float] = []
    for n, program in enumerate(programs):
        ready = done[n - users] if users and n >= users else 0.0
        sent = 0.0
        for i, stage in enumerate(rows[id(program)]):
            if hidden:
                begin = max(free[i] + stage["control"], max(free[i], ready) + stage["move"])
            else:
                begin = max(free[i], ready) + stage["control"] + stage["move"]
            ready = begin + stage["work"]
            free[i] = ready + stage["send"]
            sent = max(sent, free[i])
        done.append(sent)
    return done


def test_the_interval_is_that_of_the_busiest_stage(exe):
    busiest = max(sum(row.values()) for row in by_hand(exe.program))
    assert exe.initiation_interval == pytest.approx(busiest / WAFER.clock_hz, rel=1e-12)
    assert exe.telemetry.initiation_interval == exe.initiation_interval


def test_the_interval_is_what_a_simulated_pipeline_settles_at(exe):
    done = simulate([exe.program] * 40, hidden=False)
    assert (done[-1] - done[-11]) / 10 == pytest.approx(exe.initiation_interval * WAFER.clock_hz)
    assert simulate([exe.program])[0] == pytest.approx(exe.telemetry.cycles)


def test_users_at_full_speed(exe):
    rows = by_hand(exe.program)
    fill = exe.telemetry.cycles / max(sum(row.values()) for row in rows)
    assert exe.pipeline_users == math.floor(fill)
    assert 1 < exe.pipeline_users <= len(exe.program.stages)


@pytest.mark.parametrize("users", [1, 2, 3, 4, 5, 9])
def test_users_in_a_simulated_closed_loop(exe, users):
    """Their tokens per second are those of the formula, or a little more where control hides in a wait."""
    runs = 60 * users
    done = simulate([exe.program] * runs, users=users)
    measured = (runs - 20 * users) / ((done[-1] - done[20 * users - 1]) / WAFER.clock_hz)
    assert measured >= exe.throughput(users) * (1 - 1e-9)
    assert measured <= exe.throughput(users) * 1.05
    assert exe.throughput(users) == users * exe.user_speed(users)


def test_speed_is_flat_then_falls(exe):
    alone, full = exe.telemetry.tokens_per_second, exe.pipeline_users
    speeds = [exe.user_speed(u) for u in range(1, 30)]
    assert speeds[:full] == [alone] * full
    assert all(a > b for a, b in zip(speeds[full - 1 :], speeds[full:]))
    assert speeds[-1] == pytest.approx(1 / (29 * exe.initiation_interval))
    together = [exe.throughput(u) for u in range(1, 30)]
    assert all(a <= b * (1 + 1e-12) for a, b in itertools.pairwise(together))


def test_a_run_serves_a_batch():
    exe = compiled(batch=2)
    assert exe.pipeline_users == 2 * exe.telemetry.in_flight
    assert exe.user_speed(1) == exe.user_speed(2) == exe.telemetry.tokens_per_second
    over = exe.pipeline_users + 1
    assert exe.user_speed(over) == exe.user_speed(over + 1) < exe.user_speed(over - 1)
    assert exe.capacity([64])[64].users % 2 == 0


def test_one_stage_takes_one_run_after_the_other():
    w, x = normal(33, 47), normal(3, 33)
    found = wsc.compile(lambda w, x: x @ w, w, x, wafer=small(24, 24), weight_argnums=0).telemetry
    assert found.in_flight == 1
    assert found.rate(1) == found.tokens_per_second
    assert found.rate(3) == pytest.approx(found.tokens_per_second / 3)


def test_stages_that_read_from_further_back_do_not_stream():
    def fn(p, x):
        for name in ("a", "b", "c"):
            kept, x = x, x @ p[name]["w"]
        return x + kept @ p["d"]["w"] @ p["d"]["w"].T

    p = {n: {"w": normal(32, 32, seed=i)} for i, n in enumerate("abcd")}
    found = wsc.compile(fn, p, normal(1, 32), wafer=small(24, 24, 2048)).telemetry
    stages = found.program.stages
    assert any(source not in (None, i - 1) for i, s in enumerate(stages) for _, source, _ in s.arrivals)
    with pytest.raises(wsc.UnsupportedError, match="reads from one further back"):
        _ = found.initiation_interval


def tiles(program) -> list[tuple[int, int]]:
    """(bytes of state, bytes of all else) a PE of every stage, the state from the layouts in which it is updated."""
    found = []
    for stage in program.stages:
        state = 0
        for op in stage.ops:
            if op.name == "dynamic_update_slice":
                shape, at = op.eqn.invars[0].aval.shape, op.ins[0]
                parts = [y * x for y, x in zip(at.y, at.x)]
                folds = at.folds or (1,) * len(shape)
                nbytes = 4 * math.prod(f * math.ceil(n / (p * f)) for n, p, f in zip(shape, parts, folds))
                state += 8 * math.ceil(nbytes / 8)
        other = sum(a.nbytes for a in stage.memory) - state
        found.append((state, other))
    return found


def fill(program) -> int:
    """Users put onto the PEs one after the other, until one does not fit somewhere."""
    users = 0
    while all(other + (users + 1) * state <= program.wafer.sram_bytes for state, other in tiles(program)):
        users += 1
    return users


def test_capacity_is_what_fits_one_user_after_the_other(exe):
    assert exe.capacity([64])[64].users == fill(exe.program) > 1


@pytest.mark.parametrize("context", [48, 200])
def test_capacity_at_another_context_is_that_of_a_program_for_it(context):
    """On regions of one given size."""
    grid = (20, 20)
    options = {"grid": grid, "prefill_chunk": 4}
    found = compiled(**options).capacity([context])[context]
    other = compiled(context=context, **options)
    assert found.users == fill(other.program)
    assert found.tokens_per_second == other.telemetry.tokens_per_second
    assert found.flat == other.pipeline_users
    assert found.chunk == 4


def test_capacity_against_larger_batches():
    """A batch of so many users is another way to have room for them; only its activations take more."""
    wide = dataclasses.replace(TINY, num_attention_heads=1, num_key_value_heads=1)  # a cache far larger than its scores
    options = {"config": wide, "grid": (12, 12), "prefill_chunk": 1, "context": 768}
    users = compiled(**options).capacity([768])[768].decode_only
    fits = 0
    for batch in range(1, users + 3):
        try:
            compiled(batch=batch, **options)
            fits = batch
        except wsc.FitError:
            break
    assert users > 2
    assert abs(fits - users) <= 1


def test_capacity_by_bytes_and_pooled(exe):
    """Sums over all PEs: the weights once and nothing else; or all that is placed, in code, weights and buffers."""
    found = exe.capacity([64])[64]
    cache = 2 * 3 * 64 * 64 * 4 + 4  # K and V of three layers, 64 tokens of 64 features, and their number
    parameters = 64 * 64 + 3 * (4 * 64 * 64 + 3 * 64 * 96 + 2 * 64) + 64 + 64 * 64
    assert exe.memory_analysis().weight_bytes == 4 * parameters
    assert found.by_bytes == (1600 * WAFER.sram_bytes - 4 * parameters) // cache
    placed = sum(
        s.region.pes * (other - WAFER.code_bytes) for s, (_, other) in zip(exe.program.stages, tiles(exe.program))
    )
    assert found.pooled == (1600 * (WAFER.sram_bytes - WAFER.code_bytes) - placed) // cache
    assert found.by_bytes > found.pooled > found.users
    assert found.decode_only >= found.users


def test_capacity_falls_with_context(exe):
    found = exe.capacity(CONTEXTS)
    for name in ("users", "decode_only", "by_bytes", "tokens_per_second"):
        values = [getattr(r, name) for r in found.rows]
        assert values == sorted(values, reverse=True), name
    assert [r.context for r in found.rows] == list(CONTEXTS)


def test_a_context_without_room(exe):
    found = exe.capacity([64, 10**6])
    row = found[10**6]
    assert (row.users, row.flat, row.chunk, row.throughput) == (0, 0, 0, 0.0)
    assert row.words == "no room on these regions"
    assert "1,000,000" in str(found)
    json.dumps(found.as_dict(), allow_nan=False)


def test_a_smaller_prefill_chunk_leaves_more_room():
    rooms = [compiled(prefill_chunk=n, grid=(16, 16)).capacity([64])[64].users for n in (16, 8, 1)]
    assert rooms[0] < rooms[1] < rooms[2]


def test_words_of_a_row(exe):
    row = exe.capacity([64])[64]
    assert row.users > row.flat > 1
    each = exe.user_speed(row.users)
    assert row.words == f"flat from 1 user to {row.flat}, {each:,.0f} at {row.users}"
    assert row.throughput == pytest.approx(exe.throughput(row.users))
    assert dataclasses.replace(row, users=1).words == "1 user at full speed"


@pytest.mark.parametrize("prompt", [1, 2, 7, 8, 9, 33, 64])
def test_first_token_against_a_simulated_pipeline(exe, prompt):
    """Every chunk, or token, an event at every stage; the last one's logits at the host."""
    found = exe.first_token(prompt)
    chunks = math.ceil(prompt / exe.chunk)
    clock = WAFER.clock_hz
    for seconds, program, runs in (
        (found.chunked, exe.prefill.program, chunks),
        (found.streamed, exe.program, prompt),
    ):
        simulated = simulate([program] * runs)[-1] / clock
        assert simulated <= seconds * (1 + 1e-9)
        assert seconds <= simulated * 1.05
    assert found.seconds == exe.first_token_seconds(prompt) == min(found.chunked, found.streamed)
    assert ("chunks of" in found.way) == (found.chunked < found.streamed)


def test_first_token_of_longer_prompts_takes_longer(exe):
    seconds = [exe.first_token_seconds(n) for n in range(1, 65)]
    assert all(a <= b for a, b in itertools.pairwise(seconds))
    assert seconds[0] <= exe.telemetry.seconds < seconds[-1]


def test_the_end_of_the_context_has_no_room_for_a_padded_chunk():
    exe = compiled(context=20, prefill_chunk=8)
    whole, steps = exe.first_token(16).chunked, exe.first_token(4).streamed
    assert exe.first_token(20).chunked == pytest.approx(whole + steps)
    assert exe.first_token(12).chunked == whole


def test_reports_say_what_they_hold_for(exe):
    words = "1 x small at 0.875 GHz, decode of 1 token, batch 1, context 64, float32, prefill 8 at a time"
    assert exe.conditions == exe.capacity([64]).conditions == words
    report = " ".join(str(exe.report()).split())
    assert words in report


@pytest.mark.parametrize("prompt", [0, -1, 65, 2.0, "8", True])
def test_prompts_that_are_none(exe, prompt):
    with pytest.raises(wsc.ArgumentError, match="from 1 to the context of 64"):
        exe.first_token(prompt)


@pytest.mark.parametrize("contexts", [[], [0], [64, 1.5], ["64"]])
def test_contexts_that_are_none(exe, contexts):
    with pytest.raises(wsc.ArgumentError, match="whole numbers of at least 1"):
        exe.capacity(contexts)


def test_users_that_are_none(exe):
    for users in (0, -2, 1.5):
        with pytest.raises(wsc.ArgumentError, match="users is"):
            exe.user_speed(users)
    with pytest.raises(wsc.ArgumentError, match="no row for a context of 32"):
        exe.capacity([64])[32]


def test_the_interval_is_a_function_of_the_wafer(exe):
    """As the seconds are: a faster clock shortens all of it but what off-wafer links take."""

    def interval(clock):
        wafer = dataclasses.replace(WAFER, clock_hz=clock)
        return Telemetry(dataclasses.replace(exe.program, wafer=wafer)).initiation_interval

    slope = float(jax.grad(interval)(WAFER.clock_hz))
    assert -exe.initiation_interval / WAFER.clock_hz * 1.0001 < slope < 0
