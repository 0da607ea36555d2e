"""What becomes of every primitive of JAX: placed by a rule, inlined, dropped, a loop, or refused with the reason.

`python -m wsc.lowering.rules` prints the table of `docs/primitives.md`.
"""

import importlib
import sys
import types
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax.extend.core as jex

from wsc.lowering import jaxapi
from wsc.lowering.jaxapi import CALLS
from wsc.lowering.rules import RULES
from wsc.lowering.rules.shape import IDENTITIES

# Modules whose import brings every primitive of jax.lax, jax.numpy, jax.nn, jax.random and jax.scipy.special about.
MODULES = (
    "jax.lax jax.lax.linalg jax.numpy jax.numpy.fft jax.numpy.linalg jax.nn jax.random jax.scipy.linalg "
    "jax.scipy.signal jax.scipy.special jax.scipy.stats jax.image jax.ops jax.extend.core.primitives"
).split()

LOOPS = ("scan", "while", "cond")


@dataclass(frozen=True)
class Refusal:
    """Why primitives are not placed, and the way on."""

    names: tuple[str, ...]
    reason: str
    way: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.way}"


def _no(names: str, reason: str, way: str) -> Refusal:
    return Refusal(tuple(names.split()), reason, way)


REFUSED = (
    _no(
        "all_gather all_gather_done all_gather_invariant all_gather_reduced all_gather_reduced_start all_gather_start "
        "all_to_all all_to_all_done all_to_all_start axis_index pbroadcast pbroadcast_done pbroadcast_start pmax pmin "
        "ppermute ppermute_done ppermute_start precv psend psum psum_done psum_invariant psum_invariant_start "
        "psum_start ragged_all_to_all reduce_scatter reduce_scatter_done reduce_scatter_start shard_map "
        "unreduced_psum unreduced_psum_start unreduced_reduce_scatter unreduced_reduce_scatter_start",
        "a collective over named devices, and which PEs share a value is the compiler's to decide",
        "give wsc the program of one device over whole arrays, sums and products instead of psum and all_gather",
    ),
    _no(
        "debug_callback debug_print io_callback pure_callback check outside_call host_callback infeed outfeed "
        "inspect_sharding ffi_call call_exported",
        "it runs code of the host, which no PE has",
        "take it out of the compiled function, or call it on the results",
    ),
    _no(
        "after_all create_token dce_sink delay semaphore_read semaphore_signal semaphore_wait unreachable",
        "it orders side effects, and a placed program has none",
        "take it out: data alone say what comes first",
    ),
    _no(
        "accum_grad_in_ref addupdate box_get box_set core_map create_linear empty_ref free_ref freeze get get_global "
        "log_extend log_read masked_load masked_swap mpmd_map new_box new_log new_ref ref_get ref_swap run_scoped "
        "run_state swap",
        "it reads or writes a mutable reference, and values of a placed program do not change",
        "return the new value, such as by x.at[i].set(y)",
    ),
    _no(
        "eig eigh hessenberg schur svd tridiagonal",
        "an eigenvalue or singular value problem is an iteration of the host's library, with no bound on its steps",
        "work it out before, and give its result as an argument, or write the iteration with matrix products",
    ),
    _no(
        "cholesky_update geqp3 geqrf householder_product ormqr symmetric_product",
        "a routine of the host's linear algebra library with no algorithm for PEs here",
        "write it with matrix products, cholesky, qr, lu or triangular_solve",
    ),
    _no(
        "cudnn_fusion dot_product_attention_bwd dot_product_attention_bwd_wrapper dot_product_attention_fp8_bwd "
        "dot_product_attention_fp8_bwd_wrapper dot_product_attention_fp8_fwd dot_product_attention_fp8_fwd_wrapper "
        "dot_product_attention_fwd dot_product_attention_fwd_wrapper scaled_dot scaled_matmul scaled_matmul_wrapper",
        "a kernel of a GPU library",
        "use implementation='xla' of the same function, or write it with products and exponentials",
    ),
    _no(
        "num_programs pallas_call program_id jaxpr_call mosaic_gpu tpu_custom_call custom_partitioning bass_call",
        "a kernel written for the memory of another machine",
        "give the plain JAX function that it computes",
    ),
    _no(
        "custom_lin call_hi_primitive call_hi_primitive_linearized custom_jvp_call_jaxpr eval_jaxpr "
        "from_edtype to_edtype tie stage",
        "it stands for a step of a JAX transformation that is not finished",
        "trace the function that grad, vmap or linearize returns, not a part of it",
    ),
    _no(
        "dim_as_value dimension_size iota_2x32_shape platform_index shape_assertion",
        "a shape or a platform that is known only at run time",
        "compile for the shapes that will be used",
    ),
    _no(
        "rng_uniform",
        "its numbers come from a hidden state of the device, so no two runs agree",
        "use jax.random.uniform with a key",
    ),
    _no("empty empty2", "memory that nothing has written has no value to compute with", "use jnp.zeros"),
)
_BY_NAME = {name: refusal for refusal in REFUSED for name in refusal.names}


def no_rule(eqn: Any, stage: str) -> str:
    """What is said of an equation that cannot be placed: primitive, shapes, where it is, why, and a way on."""
    shapes = ", ".join(a.aval.str_short() for a in eqn.invars)
    scope = jaxapi.scope(eqn)
    where = f" in stage '{stage}'{f', scope {scope!r}' if scope else ''}, from {jaxapi.source_line(eqn)}"
    if (reason := refusal(eqn.primitive.name)) is not None:
        return f"primitive '{eqn.primitive.name}' ({shapes}){where}, is not placed: {reason}."
    return (
        f"no rule for primitive '{eqn.primitive.name}' ({shapes}){where}. wsc gives every op a cost or none: "
        f"write it with supported primitives, keep it outside the compiled function, or register a rule with "
        f"wsc.lowering.rules.rule('{eqn.primitive.name}')."
    )


def refusal(name: str) -> str | None:
    """Why a primitive is refused and the way on, a sentence; None where it is not.

    >>> refusal("eigh")[:51]
    'an eigenvalue or singular value problem is an itera'
    """
    return str(_BY_NAME[name]) if name in _BY_NAME else None


def decision(name: str) -> str | None:
    """What becomes of a primitive: "placed", "inlined", "identity", "loop" or "refused"; None where nobody decided.

    >>> decision("dot_general"), decision("jit"), decision("copy"), decision("scan"), decision("psum")
    ('placed', 'inlined', 'identity', 'loop', 'refused')
    """
    if name in CALLS:
        return "inlined"
    if name in LOOPS:
        return "loop"
    if name in (*IDENTITIES, "optimization_barrier", "device_put", "pin", "unpin"):
        return "identity"
    if name in RULES:
        return "placed"
    return "refused" if name in _BY_NAME else None


@lru_cache(maxsize=1)
def primitives() -> tuple[str, ...]:
    """Names of all primitives of the JAX that is installed, sorted: those that a module of JAX has after the public
    ones are imported."""
    for name in MODULES:
        importlib.import_module(name)
    modules = [
        m for n, m in sorted(sys.modules.items()) if n.split(".")[0] == "jax" and isinstance(m, types.ModuleType)
    ]
    found = {v.name for m in modules for v in list(vars(m).values()) if isinstance(v, jex.Primitive)}
    return tuple(sorted(found))


def table() -> str:
    """`docs/primitives.md`: every decided primitive, whatever JAX is installed."""
    decided = {*RULES, *CALLS, *LOOPS, *_BY_NAME}
    groups = {kind: sorted(n for n in decided if decision(n) == kind) for kind in _MEANING}
    lines = ["# What becomes of every primitive of JAX", "", _INTRO, ""]
    for kind, meaning in _MEANING.items():
        lines += [f"## {kind.capitalize()}: {len(groups[kind])}", "", meaning, ""]
        if kind == "refused":
            lines += ["| primitives | reason | way on |", "|---|---|---|"]
            rows = sorted(REFUSED, key=lambda r: r.names)
            lines += [f"| {', '.join(f'`{n}`' for n in r.names)} | {r.reason} | {r.way} |" for r in rows]
        elif kind == "placed":
            lines += ["| primitive | rule |", "|---|---|"]
            lines += [f"| `{n}` | {_where(n)} |" for n in groups[kind]]
        else:
            lines += [", ".join(f"`{n}`" for n in groups[kind])]
        lines += [""]
    return "\n".join(lines)


def _where(name: str) -> str:
    """Module of a rule, and the first sentence of what it says, or how its work was counted."""
    from wsc.lowering.rules.work import WORK

    rule = RULES[name]
    said = WORK[name].source if name in WORK else " ".join((rule.__doc__ or "").split()).split(". ")[0].rstrip(".")
    module = rule.__module__.removeprefix("wsc.lowering.rules.")
    return (f"{module}: {said}" if said else module).replace("|", "\\|")


_INTRO = "Made by `python -m wsc.lowering.rules`; a test fails where JAX has a primitive that is not listed here."
_MEANING = {
    "placed": "A rule lays operands and results on PEs and gives the steps.",
    "inlined": "Calls: their equations take their place.",
    "identity": "Another name of the same value: nothing moves.",
    "loop": "Control flow.",
    "refused": "`wsc.UnsupportedError` names the primitive, shapes, the user's line, the reason and the way on.",
}
