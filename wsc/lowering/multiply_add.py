"""Multiply-adds: a product with a number, and the sum that takes it in, are one instruction of a PE."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from wsc.lowering.jaxapi import Literal
from wsc.lowering.plan import Stage
from wsc.lowering.tiled import TiledOp
from wsc.machine.cost import cost
from wsc.machine.steps import Compute
from wsc.machine.wafer import Wafer


def multiply_adds(stage: Stage, ops: Sequence[TiledOp], wafer: Wafer) -> list[TiledOp]:
    """c * u + sum, or sum - c * u, as one vector instruction where that takes no more cycles than the two."""
    made = {e.outvars[0]: n for n, e in enumerate(stage.eqns) if stage.data[n] and _scales(e)}
    uses: dict[Any, int] = dict.fromkeys((*stage.exports, *stage.results), 1)
    for eqn in stage.eqns:
        for a in eqn.invars:
            if not isinstance(a, Literal):
                uses[a] = uses.get(a, 0) + 1
    found = list(ops)
    for n, eqn in enumerate(stage.eqns):
        if eqn.primitive.name not in ("add", "sub") or not stage.data[n]:
            continue
        for i, a in enumerate(eqn.invars):
            p = None if isinstance(a, Literal) or uses[a] > 1 else made.get(a)
            if p is None or (eqn.primitive.name == "sub" and i == 0) or ops[p].outs[0] != ops[n].ins[i]:
                continue
            fused = _fused(found[p], found[n], wafer)
            if fused is not None:
                found[p], found[n] = fused
                break
    return found


def _scales(eqn: Any) -> bool:
    """An array times one number."""
    return eqn.primitive.name == "mul" and sum(a.aval.shape == () for a in eqn.invars) == 1


def _fused(product: TiledOp, total: TiledOp, wafer: Wafer) -> tuple[TiledOp, TiledOp] | None:
    a, b = (op.steps[-1] if op.steps else None for op in (product, total))
    if not isinstance(a, Compute) or not isinstance(b, Compute) or a.kind != "vector" or b.kind != "vector":
        return None
    if (a.calls, a.length, a.itemsize, a.instances) != (b.calls, b.length, b.itemsize, b.instances):
        return None
    both = replace(b, kind="fmac", flops=a.flops + b.flops)
    if cost(both, wafer).cycles > cost(a, wafer).cycles + cost(b, wafer).cycles:
        return None
    return replace(product, steps=product.steps[:-1]), replace(total, steps=(*total.steps[:-1], both))
