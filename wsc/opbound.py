"""The ops of a placed stage as nodes of its data flow, each with the least cycles that it takes on so many PEs."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from wsc.lowering import jaxapi
from wsc.lowering.jaxapi import Literal
from wsc.lowering.rules.elementwise import DIVIDE, TRANSCENDENTAL, VECTOR
from wsc.machine.bounds import NOTHING, Parts, elementwise, product, reduction
from wsc.machine.steps import Compute
from wsc.machine.wafer import Wafer
from wsc.program import PlacedOp, PlacedStage, Program

REDUCTIONS = "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin".split()
PASSES = "cumsum cumprod cummax cummin cumlogsumexp sort top_k integer_pow".split()  # one vector instruction at least


@dataclass(frozen=True)
class Node:
    """What is computed at once: an op, or products of one operand with several weights, whose instructions run along
    all of them. `local` cycles of its `bound` are spent on PEs, whoever else takes part in its collectives."""

    members: tuple[int, ...]  # positions of ops in the stage
    bound: Parts
    local: float


def nodes_of(stage: PlacedStage, program: Program) -> list[Node]:
    """The ops of a stage; of products with weights, those that share the moving operand are one."""
    stored: set = set(program.weight_vars)
    found: dict[Any, list[int]] = {}
    for n, op in enumerate(stage.ops):
        key: Any = n
        if _is_flexible(op):
            stored.update(op.eqn.outvars if op.weights and not op.control else ())
        elif op.name == "dot_general":
            contract, batch = op.eqn.params["dimension_numbers"]
            still = [i for i, a in enumerate(op.eqn.invars) if not isinstance(a, Literal) and a in stored]
            if len(still) == 1 and not batch[0]:
                key = op.eqn.invars[1 - still[0]], tuple(contract[1 - still[0]])
        found.setdefault(key, []).append(n)
    return [_node([stage.ops[n] for n in members], tuple(members), stage, program.wafer) for members in found.values()]


def _node(ops: list[PlacedOp], members: tuple[int, ...], stage: PlacedStage, wafer: Wafer) -> Node:
    pes, op = stage.region.pes, ops[0]
    if _is_flexible(op):
        bound = _flexible(op, pes, wafer)
    elif op.name == "dot_general":
        return _products(ops, members, pes, wafer)
    elif op.name in REDUCTIONS and op.eqn.outvars[0].aval.size and op.eqn.invars[0].aval.size:
        operand, results = op.eqn.invars[0].aval, op.eqn.outvars[0].aval.size
        words = 2 if op.name.startswith("arg") else 1  # a value and its index
        bound = reduction(operand.size, results, _itemsize(operand), words, pes, wafer)
        lanes = max(wafer.lanes("vector", _itemsize(operand)), wafer.lanes("sum", _itemsize(operand)))
        return Node(members, bound, wafer.issue_cycles + max(1.0, operand.size / pes / lanes))
    else:
        bound = _local(op, pes, wafer)
    return Node(members, bound, bound.cycles)


def _is_flexible(op: PlacedOp) -> bool:
    """A view of a weight, or control: its operands lie as it wants them."""
    return bool(op.ins) and all(at is None for at in op.ins)


def _itemsize(aval: Any) -> int:
    return 8 if jaxapi.is_extended(aval.dtype) else np.dtype(aval.dtype).itemsize


def _kind(name: str) -> str | None:
    """The kind of instruction of an op on every element, None if it may be done by renaming."""
    if name in TRANSCENDENTAL:
        return "transcendental"
    return "divide" if name in DIVIDE else "vector" if name in VECTOR or name in PASSES else None


def _flexible(op: PlacedOp, pes: int, wafer: Wafer) -> Parts:
    """What is made of weights, or control."""
    kind, out = _kind(op.name), op.eqn.outvars[0].aval
    return elementwise(kind, out.size, _itemsize(out), pes, wafer) if kind and out.size else NOTHING


def _local(op: PlacedOp, pes: int, wafer: Wafer) -> Parts:
    """Ops without a collective: instructions on every element, or none where renaming or leaving things where they
    are may do."""
    out, ins = op.eqn.outvars[0].aval, [a.aval for a in op.eqn.invars]
    if not out.size:
        return NOTHING
    if op.name == "gather":  # what one result may come from lies on several PEs
        far = ins[0].size // out.size * _itemsize(ins[0]) > wafer.sram_bytes - wafer.code_bytes
        return Parts(movement=far * (wafer.hop_cycles + wafer.relay_cycles))
    kind = _kind(op.name)
    if kind is None or (op.name == "mul" and not any(isinstance(s, Compute) for s in op.steps)):
        return NOTHING  # or part of the multiply-add that takes it in
    if op.name == "div" and ins[1].shape == ():  # by one value: perhaps a multiplication by its inverse
        kind = "vector"
    sizes = [_itemsize(a) for a in ins if a.shape == out.shape] + [_itemsize(out)]
    itemsize = min(sizes) if op.name in PASSES else max(sizes)
    bound = elementwise(kind, out.size, itemsize, pes, wafer)
    return bound + elementwise("divide", out.size, itemsize, pes, wafer) if op.name == "logistic" else bound


def _products(ops: list[PlacedOp], members: tuple[int, ...], pes: int, wafer: Wafer) -> Node:
    """Products of one moving operand as one: results and lengths of instructions are those of all together."""
    k, outputs, nbytes, longest, itemsize = 1, 0, 0, 0, 8
    for op in ops:
        (contract, batch), shapes = op.eqn.params["dimension_numbers"], [a.aval.shape for a in op.eqn.invars]
        out = op.eqn.outvars[0].aval
        k = math.prod(shapes[0][d] for d in contract[0])
        taken = [math.prod(s[d] for d in (*contract[i], *batch[i])) for i, s in enumerate(shapes)]
        longest += max(math.prod(s) // max(1, n) for s, n in zip(shapes, taken, strict=True))
        outputs, nbytes = outputs + out.size, nbytes + out.size * _itemsize(out)
        itemsize = min(itemsize, max(_itemsize(a.aval) for a in op.eqn.invars))
    if not k * outputs:
        return Node(members, NOTHING, 0.0)
    bound = product(k, outputs, longest, itemsize, nbytes / outputs, pes, wafer)
    return Node(members, bound, wafer.issue_cycles + k * outputs / pes / wafer.lanes("fmac", itemsize))
