"""Every primitive of JAX is decided, and every placed one runs on cut arrays, as `jax.jit` runs it, at a cost."""

import pathlib

import jax
import jax.numpy as jnp
import pytest
from helpers import assert_close, assert_within_sram, most_parts, normal, small
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import wsc
from wsc.lowering.rules import RULES, coverage
from wsc.machine.cost import cost

X, Y = normal(8, 16), normal(8, 16, seed=1)
P = jnp.abs(X) + 0.5  # positive
U = jnp.clip(X, -0.9, 0.9)
N = (P * 100).astype(jnp.int32)
ROWS = jnp.array([1, 5, 1])
A = normal(3, 6, 6)
S = A @ A.transpose(0, 2, 1) + 6 * jnp.eye(6)
IMAGE, FILTER = normal(2, 4, 8, 8), normal(6, 4, 3, 3)
EXPERTS, SIZES = normal(4, 16, 6), jnp.array([3, 0, 1, 4])


def bound(name, **params):
    """A primitive that has no function of its own."""
    found = [v for m in (lax, jax.extend.core.primitives) for v in vars(m).values() if getattr(v, "name", None) == name]
    return lambda *args: found[0].bind(*args, **params)


def pooled(reduce, start):
    return lambda x: lax.reduce_window(x, start, reduce, (1, 1, 3, 3), (1, 1, 2, 2), "SAME")


def max_pool_gradient(x):
    return jax.grad(lambda v: (pooled(lax.max, -jnp.inf)(v) ** 2).sum())(x)


def max_pool_tangent(x):
    return jax.jvp(pooled(lax.max, -jnp.inf), (x,), (x * 2,))[1]


def select_and_scatter(x):
    ge, add = (jax.jit(f).trace(jnp.float32(0), jnp.float32(0)).jaxpr for f in (lax.ge, lax.add))
    params = {"select_jaxpr": ge.jaxpr, "select_consts": (), "scatter_jaxpr": add.jaxpr, "scatter_consts": ()}
    params |= {"window_dimensions": (1, 1, 2, 2), "window_strides": (1, 1, 2, 2), "padding": ((0, 0),) * 4}
    return bound("select_and_scatter", **params)(x, x[:, :, ::2, ::2], jnp.float32(0))


def key_of(x):
    """A key that is known only when the program runs."""
    return jax.random.wrap_key_data(lax.bitcast_convert_type(x[0, :2], jnp.uint32))


def scatter(method, value=2.0):
    return lambda x: getattr(x.at[ROWS], method)(value)


UNARY = (
    "abs ceil cos erf erfc exp exp2 expm1 floor is_finite logistic neg round sign sin sinh cosh square tan tanh cbrt"
)
BINARY = "add sub mul div max min pow rem atan2 nextafter eq ne lt le gt ge"
COMPLEX = {"complex": lambda x, y: jnp.real(lax.complex(x, y) * lax.complex(y, x) / lax.complex(x + 3, y)),
           "real": lambda x, y: lax.real(lax.complex(x, y)), "imag": lambda x, y: lax.imag(lax.complex(x, y)),
           "conj": lambda x, y: lax.imag(lax.conj(lax.complex(x, y)))}  # fmt: skip

# family -> (arguments, primitive -> a program with it)
PROGRAMS = {
    "unary": (
        (X,),
        {n: getattr(lax, n) for n in UNARY.split()}
        | {
            "asinh": lax.asinh,
            "atan": lax.atan,
            "integer_pow": lambda x: lax.integer_pow(x, 3),
            "reduce_precision": lambda x: lax.reduce_precision(x, 5, 3),
            "copy_p": jnp.array,
            "convert_element_type": lambda x: x.astype(jnp.bfloat16),
            "select_n": lambda x: jnp.where(x > 0, x, -x),
            "clamp": lambda x: lax.clamp(x - 0.5, x * 2, x + 0.5),
            "name": lambda x: checkpoint_name(x, "x"),
            "bessel_i0e": lax.bessel_i0e,
            "bessel_i1e": lax.bessel_i1e,
            "bitcast_convert_type": lambda x: lax.bitcast_convert_type(x * 2, jnp.uint8),
        },
    ),
    "positive": (
        (P,),
        {n: getattr(lax, n) for n in "log log1p sqrt rsqrt digamma lgamma".split()}
        | {
            "acosh": lambda p: lax.acosh(p + 1),
        },
    ),
    "long series": (
        (P,),
        {
            "igamma": lambda p: lax.igamma(p, p + 1),
            "igammac": lambda p: lax.igammac(p, p + 1),
            "igamma_grad_a": lambda p: lax.igamma_grad_a(p, p + 1),
            "zeta": lambda p: lax.zeta(p + 1, p),
            "polygamma": lambda p: lax.polygamma(jnp.ones_like(p) + 0 * p, p),
            "regularized_incomplete_beta": lambda p: lax.betainc(p, p + 1, 0.3 + 0 * p),
        },
    ),
    "within one": ((U,), {n: getattr(lax, n) for n in "acos asin atanh erf_inv".split()}),
    "binary": (
        (X, Y),
        {n: getattr(lax, n) for n in BINARY.split()}
        | {
            "add_any": bound("add_any"),
            "eq_to": bound("eq_to"),
            "le_to": bound("le_to"),
            "lt_to": bound("lt_to"),
            "dot_general": lambda x, y: x @ y.T,
        }
        | COMPLEX,
    ),
    "integers": (
        (N,),
        {
            "and": lambda n: n & (n + 1),
            "or": lambda n: n | (n + 1),
            "xor": lambda n: n ^ (n + 1),
            "not": lax.bitwise_not,
            "clz": lax.clz,
            "population_count": lax.population_count,
            "mulhi": lambda n: lax.mulhi(n, n + 7),
            "shift_left": lambda n: n << 2,
            "shift_right_arithmetic": lambda n: n >> 1,
            "shift_right_logical": lambda n: lax.shift_right_logical(n, 1 + 0 * n),
            "reduce_xor": lambda n: lax.reduce_xor(n, (1,)),
        },
    ),
    "reductions": (
        (X,),
        {
            "reduce_sum": lambda x: x.sum(1),
            "reduce_max": lambda x: x.max(1),
            "reduce_min": lambda x: x.min(0),
            "reduce_prod": lambda x: x.prod(1),
            "reduce_and": lambda x: (x > 0).all(1),
            "reduce_or": lambda x: (x > 1).any(1),
            "argmax": lambda x: x.argmax(1),
            "argmin": lambda x: x.argmin(1),
            "reduce": lambda x: lax.reduce(x, 1.0, lambda a, b: a * b, (1,)),
            "cumsum": lambda x: lax.cumsum(x, 1),
            "cumprod": lambda x: lax.cumprod(x, 1, reverse=True),
            "cummax": lambda x: lax.cummax(x, 1),
            "cummin": lambda x: lax.cummin(x, 0),
            "cumlogsumexp": lambda x: lax.cumlogsumexp(x, 1),
        },
    ),
    "shape": (
        (X,),
        {
            "reshape": lambda x: x.reshape(4, 32) * 2,
            "squeeze": lambda x: x[:1].squeeze(0) * 2,
            "transpose": lambda x: x.T * 2,
            "broadcast_in_dim": lambda x: jnp.broadcast_to(x, (3, 8, 16)) * 2,
            "slice": lambda x: x[:, 3:9],
            "split": lambda x: jnp.split(x, 2, 1)[1],
            "concatenate": lambda x: jnp.concatenate([x, x * 2], 1),
            "tile": lambda x: jnp.tile(x, (1, 2)),
            "stack": lambda x: jnp.stack([x, x * 2]),
            "unstack": lambda x: jnp.unstack(x)[2],
            "pad": lambda x: lax.pad(x, 0.0, [(1, 2, 1), (0, 3, 0)]),
            "rev": lambda x: x[:, ::-1],
            "iota": lambda x: (x[:1, :1] < lax.broadcasted_iota(jnp.float32, (600, 120), 1)).sum(),
        },
    ),
    "indexing": (
        (X,),
        {
            "gather": lambda x: x[ROWS],
            "dynamic_slice": lambda x: lax.dynamic_slice(x, (x[0, 0].astype(jnp.int32), 0), (2, 16)),
            "dynamic_update_slice": lambda x: lax.dynamic_update_slice(x, x[:1] * 2, (3, 0)),
            "scatter": scatter("set"),
            "scatter-add": scatter("add"),
            "scatter-sub": scatter("subtract"),
            "scatter-mul": scatter("mul"),
            "scatter-min": scatter("min", 0.0),
            "scatter-max": scatter("max", 0.0),
            "sort": lambda x: lax.sort((lax.round(x), -x), dimension=1, num_keys=2),
            "top_k": lambda x: lax.top_k(x, 3),
            "approx_top_k": lambda x: lax.approx_max_k(x, 3),
        },
    ),
    "windows": (
        (IMAGE, FILTER),
        {
            "conv_general_dilated": lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME"),
            "reduce_window_max": lambda x, w: pooled(lax.max, -jnp.inf)(x),
            "reduce_window_min": lambda x, w: pooled(lax.min, jnp.inf)(x),
            "reduce_window_sum": lambda x, w: pooled(lax.add, 0.0)(x),
            "reduce_window": lambda x, w: pooled(lambda a, b: a * b, 1.0)(x),
            "select_and_scatter_add": lambda x, w: max_pool_gradient(x),
            "select_and_scatter": lambda x, w: select_and_scatter(x),
            "select_and_gather_add": lambda x, w: max_pool_tangent(x),
        },
    ),
    "linear algebra": (
        (S, A),
        {
            "cholesky": lambda s, a: lax.linalg.cholesky(s),
            "lu": lambda s, a: lax.linalg.lu(s)[0],
            "lu_pivots_to_permutation": lambda s, a: lax.linalg.lu_pivots_to_permutation(lax.linalg.lu(s)[1], 6),
            "qr": lambda s, a: lax.linalg.qr(s)[1],
            "triangular_solve": lambda s, a: lax.linalg.triangular_solve(s, a, left_side=True, lower=True),
            "tridiagonal_solve": lambda s, a: lax.linalg.tridiagonal_solve(s[0, 0], s[0, 0] + 9, s[0, 1], a[0]),
            "fft": lambda s, a: jnp.abs(jnp.fft.irfft(jnp.fft.rfft(a) * 2)),
        },
    ),
    "experts": ((EXPERTS, X), {"ragged_dot_general": lambda w, x: lax.ragged_dot(x, w, SIZES)}),
    "long rejection": ((X,), {"random_gamma": lambda x: jax.random.gamma(key_of(x), jnp.abs(x) + 0.5)}),
    "random": (
        (X,),
        {
            "random_bits": lambda x: x + jax.random.uniform(key_of(x), x.shape),
            "random_split": lambda x: jax.random.bits(jax.random.split(key_of(x), 3)[1], (8, 16)),
            "random_fold_in": lambda x: jax.random.bits(jax.random.fold_in(key_of(x), 7), (8, 16)),
            "random_seed": lambda x: jax.random.bits(
                jax.random.key(lax.bitcast_convert_type(x[0, 0], jnp.int32)), (8, 16)
            ),
            "random_wrap": lambda x: jax.random.bits(key_of(x), (4,)),
            "random_unwrap": lambda x: jax.random.key_data(jax.random.split(key_of(x))),
            "random_clone": lambda x: jax.random.bits(jax.random.clone(key_of(x))),
            "threefry2x32": lambda x: bound("threefry2x32")(
                *(lax.bitcast_convert_type(x + i, jnp.uint32) for i in range(4))
            ),
            "rng_bit_generator": lambda x: lax.rng_bit_generator(
                lax.bitcast_convert_type(x[0, :4], jnp.uint32), (8, 16)
            ),
        },
    ),
}
CASES = [(family, name) for family, (_, fns) in PROGRAMS.items() for name in fns]
# Ops whose result is their operand, seen otherwise or moved by the layouts asked for; random_wrap and the like too.
FREE = (
    "bitcast_convert_type broadcast_in_dim random_clone random_unwrap random_wrap reshape slice split squeeze "
    "transpose unstack"
).split()
DROPPED = {"copy_p", "name"}  # identities
# No public function of JAX makes them.
INTERNAL = {"broadcast_to", "zeros_like", "reciprocal", "threefry4x32", "philox2x32", "philox4x32"}


def test_every_primitive_of_jax_is_decided():
    undecided = [n for n in coverage.primitives() if coverage.decision(n) is None]
    assert not undecided, f"decide in wsc/lowering/rules/coverage.py: {undecided}"


def test_every_placed_primitive_has_a_program():
    placed = {n for n in coverage.primitives() if coverage.decision(n) == "placed"}
    assert placed - {n for _, n in CASES} <= INTERNAL


def test_decisions_exclude_each_other():
    refused = [n for r in coverage.REFUSED for n in r.names]
    assert len(set(refused)) == len(refused)
    assert not set(refused) & {*RULES, *coverage.CALLS, *coverage.LOOPS}
    assert len(coverage.primitives()) > 200


def test_the_table_is_up_to_date():
    file = pathlib.Path(__file__).parents[2] / "docs" / "primitives.md"
    assert file.read_text() == coverage.table(), "python -m wsc.lowering.rules > docs/primitives.md"


# Families whose functions XLA takes long to compile for this computer.
FAMILIES = [pytest.param(f, marks=pytest.mark.slow) if f.startswith("long") else f for f in PROGRAMS]


def compiled(family):
    """One program with all primitives of a family, as a function and placed."""
    args, fns = PROGRAMS[family]
    together = lambda *a: {name: fn(*a) for name, fn in fns.items()}  # noqa: E731
    return args, together, wsc.compile(together, *args, wafer=small(usable=40000))


@pytest.mark.parametrize("family", PROGRAMS)
def test_no_work_is_free(family):
    program = compiled(family)[2].program
    assert_within_sram(program)
    assert most_parts(program) > 1
    for name in PROGRAMS[family][1]:
        ops = [op for _, op in program.ops() if op.name == name]
        assert ops or name in DROPPED, f"{name} is not in the program"
        cycles = sum(cost(s, program.wafer).cycles for op in ops for s in op.steps)
        assert cycles > 0 or name in (*FREE, *DROPPED), name


@pytest.mark.parametrize("family", FAMILIES)
def test_placed_primitives_compute_what_jax_does(family):
    args, together, exe = compiled(family)
    outputs, telemetry = exe(*args)
    for name, expected in jax.jit(together)(*args).items():
        assert_close(outputs[name], expected, 1e-4)
    assert telemetry.cycles > 0


REFUSALS = {
    "eigh": lambda x: jnp.linalg.eigh(x @ x.T)[0], "svd": lambda x: jnp.linalg.svd(x)[1],
    "eig": lambda x: jnp.linalg.eigvals(x[:, :8]), "schur": lambda x: jax.scipy.linalg.schur(x[:, :8])[0],
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_names_primitive_shapes_line_reason_and_way(name):
    with pytest.raises(wsc.UnsupportedError) as caught:
        wsc.compile(REFUSALS[name], X, wafer=small())
    said = str(caught.value)
    for part in (f"'{name}'", "float32[8,", "test_coverage.py", coverage.refusal(name)):
        assert part in said
