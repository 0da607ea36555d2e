"""Calls in place: what a function changes of flax objects is written back into them, as `nnx.jit` does."""

from dataclasses import dataclass
from typing import Any

import jax

from wsc.lowering import jaxapi
from wsc.lowering.jaxapi import Traced
from wsc.program import Program


@dataclass(frozen=True)
class InPlace:
    """The leaves of a call's arguments that it changes: number of the leaf -> that of the result."""

    tree: Any  # of the arguments
    results: Any  # structure of what the function itself returns
    count: int  # leaves of it, the first results
    changed: dict[int, int]

    @staticmethod
    def of(program: Program, traced: Traced) -> "InPlace":
        outputs, changed = jax.tree.unflatten(traced.out_tree, range(traced.out_tree.num_leaves))
        ins, outs = program.jaxpr.invars, program.jaxpr.outvars
        really = {i: out for i, out in changed.items() if outs[out] is not ins[i]}
        results = jax.tree.structure(outputs)
        return InPlace(traced.in_tree, results, results.num_leaves, really)

    def write_back(self, args: tuple, leaves: list, outputs: list) -> None:
        """Give the objects among `args`, whose leaves are `leaves`, their new values."""
        new = [outputs[self.changed[i]] if i in self.changed else leaf for i, leaf in enumerate(leaves)]
        at = 0
        for argument in args:
            count = len(jax.tree.leaves(argument))
            if any(at <= i < at + count for i in self.changed) and jaxapi.is_nnx_object(argument):
                jaxapi.set_leaves(argument, new[at : at + count])
            at += count
