"""Stencils and solvers written in jax.numpy: right numbers, halos from neighbours alone, and the published speed."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import normal, run_everywhere, small

import wsc
from wsc.machine.steps import Multicast, Rounds, Shift
from wsc.models.stencil import DERIVATIVE, RADIUS, wave_step

PUBLISHED = 0.0761 / 1000 * 0.85e9  # cycles of a step on a WSE-2, 755 x 994 x 1,000 cells
WHOLE = jax.ShapeDtypeStruct((750, 994, 1000), "float32")
WAFERS = {"one cell a PE": ((14, 13, 12), small(14, 13, 8000)), "tiles": ((16, 18, 11), small(8, 6, 30_000))}


def star(u, get):
    """The sum of a 25-point star, its neighbours given by `get(u, axis, shift)`."""
    total = 3 * DERIVATIVE[0] * get(u, 0, 0)
    for axis in range(3):
        for d in range(1, RADIUS + 1):
            for shift in (-d, d):
                total = total + DERIVATIVE[d] * get(u, axis, shift)
    return total


def inner(u, axis=0, shift=0):
    starts = [RADIUS + shift * (d == axis) for d in range(3)]
    return u[tuple(slice(s, n - 2 * RADIUS + s) for s, n in zip(starts, u.shape, strict=True))]


def rolled(u, before):
    return 2 * u - before + 0.1 * star(u, lambda u, axis, shift: jnp.roll(u, -shift, axis))


def padded(u, before):
    return 2 * u - before + 0.1 * star(jnp.pad(u, RADIUS), inner)


def far_first(u, before):
    total = 3 * DERIVATIVE[0] * inner(u)
    for axis in range(3):
        for shift in (-4, -3, -2, -1, 4, 3, 2, 1):
            total = total + DERIVATIVE[abs(shift)] * inner(u, axis, shift)
    return jnp.pad(2 * inner(u) - inner(before) + 0.1 * total, RADIUS)


def in_pairs(u, before):
    total = 3 * DERIVATIVE[0] * inner(u)
    for d in range(1, RADIUS + 1):
        total = total + DERIVATIVE[d] * sum(inner(u, axis, -d) + inner(u, axis, d) for axis in range(3))
    return before.at[4:-4, 4:-4, 4:-4].set(2 * inner(u) - inner(before) + 0.1 * total)


SPELLINGS = {f.__name__: f for f in (wave_step, rolled, padded, far_first, in_pairs)}


def shifts(program) -> list[Shift]:
    rounds = [r for _, op in program.ops() for r in op.steps if isinstance(r, Rounds)]
    return [s for r in rounds for s in r.fabric if isinstance(s, Shift)]


def cycles(exe, kind: type) -> float:
    """Cycles of all steps of a kind."""
    return float(sum(exe.telemetry.of((s,)).cycles for _, op in exe.program.ops() for s in op.steps if type(s) is kind))


ON_SMALL = [("wave_step", "one cell a PE"), ("wave_step", "tiles"), ("rolled", "tiles"), ("padded", "one cell a PE"),
            ("far_first", "tiles"), ("in_pairs", "one cell a PE")]  # fmt: skip


@pytest.mark.parametrize(("name", "where"), ON_SMALL)
def test_every_spelling_computes_what_jax_does_and_moves_halos_alone(name, where):
    shape, wafer = WAFERS[where]
    exe = run_everywhere(SPELLINGS[name], normal(*shape), normal(*shape, seed=1), wafer=wafer)
    moves = [s for _, op in exe.program.ops() for s in op.steps if isinstance(s, Shift | Multicast)]
    assert not moves  # nothing is sent to all, or laid anew
    tile = max(1, -(-shape[0] // 8)) if where == "tiles" else 1
    column = shape[2] * (-(-shape[1] // 6) if where == "tiles" else 1)
    found = shifts(exe.program)
    if name != "rolled":
        assert max(s.distance for s in found) <= RADIUS + 1
    # Four directions, each no more than the columns within the radius: 16 columns of one cell come to every PE.
    assert sum(s.wavelets for s in found) <= 4 * RADIUS * max(column, tile * shape[2])
    assert min(exe.program.stages[0].region.grid) > 1


def test_a_wave_against_numpy():
    """In float64 by numpy, with loops over the star."""
    u, before = normal(12, 11, 10), normal(12, 11, 10, seed=1)
    a, b = (np.asarray(v, np.float64) for v in (u, before))
    expected = b.copy()
    for at in np.ndindex(4, 3, 2):
        i = tuple(RADIUS + k for k in at)
        total = 3 * DERIVATIVE[0] * a[i]
        for axis in range(3):
            for d in (1, 2, 3, 4):
                for shift in (-d, d):
                    total += DERIVATIVE[d] * a[tuple(k + shift * (n == axis) for n, k in enumerate(i))]
        expected[i] = 2 * a[i] - b[i] + 0.1 * total
    found, _ = wsc.compile(wave_step, u, before, wafer=small(12, 11, 8000))(u, before)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", SPELLINGS)
def test_the_published_stencil_within_20_percent(name):
    exe = wsc.compile(SPELLINGS[name], WHOLE, WHOLE, wafer=wsc.WSE2)
    (stage,) = exe.program.stages
    assert (stage.region.height, stage.region.width) == (994, 750)
    assert float(exe.telemetry.cycles_per_layer) == pytest.approx(PUBLISHED, rel=0.2)
    # By hand: 16 columns of 1,000 wavelets at 0.5 a cycle, a task and relays for each of the 16 messages.
    if name == "wave_step":
        assert cycles(exe, Rounds) == 16 * (1000 / 0.5 + 1 + 5 + 10)


def test_the_published_stencil_without_a_byte_to_spare():
    """On a PE with just the bytes that it takes, and on one with twice as many: the same time."""
    exe = wsc.compile(wave_step, WHOLE, WHOLE, wafer=wsc.WSE2)
    used = exe.program.stages[0].used_bytes
    for sram in (used + -used % 8, 2 * 49_152):
        other = wsc.compile(wave_step, WHOLE, WHOLE, wafer=dataclasses.replace(wsc.WSE2, sram_bytes=sram))
        assert other.telemetry.cycles_per_layer == exe.telemetry.cycles_per_layer
    with pytest.raises(wsc.WscError, match="does not fit"):
        wsc.compile(wave_step, WHOLE, WHOLE, wafer=dataclasses.replace(wsc.WSE2, sram_bytes=used - 1000))


def test_what_is_fetched_far_first_waits_in_sram():
    near, far = (wsc.compile(f, WHOLE, WHOLE, wafer=wsc.WSE2) for f in (wave_step, far_first))
    assert cycles(far, Rounds) <= cycles(near, Rounds)
    assert far.program.stages[0].used_bytes >= near.program.stages[0].used_bytes + 2 * 992 * 4


def test_a_box_of_27_points_fetches_eight_columns():
    def box(u):
        total = 0.0
        for i, j, k in np.ndindex(3, 3, 3):
            total = total + u[i : i + 12, j : j + 11, k : k + 10]
        return total

    exe = run_everywhere(box, normal(14, 13, 12), wafer=small(14, 13, 8000))
    assert sum(s.wavelets for s in shifts(exe.program)) == 8 * 12
    assert all(s.distance <= 1 for s in shifts(exe.program))


def solver(laplacian, steps: int):
    def run(b):
        x, r = jnp.zeros_like(b), b
        p, rr = r, jnp.vdot(r, r)
        for _ in range(steps):
            q = laplacian(p)
            step = rr / jnp.vdot(p, q)
            x, r = x + step * p, r - step * q
            new = jnp.vdot(r, r)
            p, rr = r + (new / rr) * p, new
        return x, jnp.linalg.norm(r)

    return run


def walls_2d(v):
    w = jnp.pad(v, 1)
    return 4 * v - w[2:, 1:-1] - w[:-2, 1:-1] - w[1:-1, 2:] - w[1:-1, :-2]


def ring_3d(v):
    return 7 * v - sum(jnp.roll(v, s, a) for a in range(3) for s in (1, -1))  # shifted: it has an inverse


@pytest.mark.parametrize(("laplacian", "shape"), [(walls_2d, (30, 20)), (ring_3d, (9, 8, 7))])
def test_conjugate_gradients(laplacian, shape):
    """The same as jax.jit; what is left is what numpy finds is left, and less than at the start."""
    b = normal(*shape)
    exe = run_everywhere(solver(laplacian, 2), b, wafer=small(14, 13, 8000), tolerance=1e-4)
    names = {type(s).__name__ for _, op in exe.program.ops() for s in op.steps}
    assert names <= {"Compute", "Rounds", "AllReduce"}
    (x, left), _ = exe(b)
    residual = np.asarray(b, np.float64) - np.asarray(laplacian(x), np.float64)
    assert float(left) == pytest.approx(np.linalg.norm(residual), rel=1e-3)
    assert float(left) < np.linalg.norm(b)


@pytest.mark.parametrize(
    "fn",
    [
        lambda u: u[1:] - u[:-1],  # a staggered grid
        lambda u: jnp.concatenate([u[:1], u[1:-1] * 2, u[-1:]]),  # walls
        lambda u: jnp.pad(u, 1, mode="edge")[2:, 1:-1],
        lambda u: jnp.pad(u, 3, mode="wrap").sum(0),
        lambda u: u[::2] + u[1::2],  # a coarser grid
        lambda u: u[0] + u[-1] + u.sum(axis=0),
        lambda u: u.at[2:5, 3].add(1.0),
        lambda u: jnp.where(u > 0, jnp.roll(u, (2, -1), (0, 1)), u.T.T),
        lambda u: (u[1:-1, 2:-2] / jnp.max(u[:-2, 1:-3])).reshape(-1).sum(),
        lambda u: jnp.concatenate([u, u[:4]], axis=1 - 1) * 2,
        lambda u: jnp.stack([u[3:], u[:-3]]).mean(),
        lambda u: jnp.sort(u[2:-1], axis=0),
    ],
)
@pytest.mark.parametrize("shape", [(14, 12), (30, 22)])
def test_other_array_programs(fn, shape):
    run_everywhere(fn, normal(*shape), wafer=small(14, 12, 8000))


def test_the_document_runs():
    text = (Path(__file__).parents[1] / "docs" / "science.md").read_text()
    namespace: dict = {}
    for source in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        exec(source, namespace)
    assert float(namespace["cycles"]) == pytest.approx(62_588)
    for row, name in (("slices", "wave_step"), ("`jnp.pad`", "padded"), ("`jnp.roll`", "rolled")):
        exe = wsc.compile(SPELLINGS[name], WHOLE, WHOLE, wafer=wsc.WSE2)
        (line,) = [found for found in text.splitlines() if found.startswith(f"| {row}")]
        assert f"| {float(exe.telemetry.cycles_per_layer):,.0f} |" in line
        assert line.endswith(f"| {exe.program.stages[0].used_bytes:,} |")
