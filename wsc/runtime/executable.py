"""Executable: a placed program one can call, read and ask. Names are those of `jax.stages.Compiled`."""

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax

from wsc.errors import ArgumentError
from wsc.lowering.jaxapi import Traced, nbytes
from wsc.machine import baselines
from wsc.machine.baselines import Serving
from wsc.machine.wafer import Wafer
from wsc.program import Program
from wsc.runtime.execute import as_function
from wsc.runtime.fabric.simulate import LIMIT
from wsc.runtime.in_place import InPlace
from wsc.runtime.report import Report
from wsc.runtime.simulation import Simulation, simulate_stage
from wsc.runtime.telemetry import Telemetry

# Bytes of weights to which the efficiencies of other hardware may be carried: they were fitted to 16 GB. A small model
# waits for launches that a roofline does not know; an LPU's one row does not reach larger ones.
GPU_BYTES, LPU_BYTES = (4e9, float("inf")), (4e9, 20e9)


@dataclass(frozen=True)
class MemoryStats:
    """Bytes over all PEs, with the names of JAX's `memory_analysis()` first.

    `weight_bytes` x stated replication + padding is what the weights take: `replicated_bytes` counts every stated
    copy, `padding_bytes` what tiles are rounded up by, and their sum is `stored_weight_bytes`.
    """

    argument_size_in_bytes: int
    output_size_in_bytes: int
    temp_size_in_bytes: int
    generated_code_size_in_bytes: int
    weight_bytes: int
    replicated_bytes: int
    padding_bytes: int
    stored_weight_bytes: int
    state_bytes: int
    fullest_pe_bytes: int
    sram_bytes_per_pe: int


class Executable:
    """A program compiled for a wafer. Calling it returns (outputs, telemetry).

    `order` is "fabric" (partial sums added as the wafer adds them) or "xla" (as `jax.jit` would).
    `bound` has the model that was given to `compile`: its leaves come before the call's own arguments. What a function
    that works `in_place` changes of flax objects is written back into them by every call.
    """

    def __init__(self, program: Program, traced: Traced, order: str, bound: tuple = (), in_place: bool = False):
        self.program, self.order = program, order
        self.in_tree, self.out_tree, self.out_info = traced.in_tree, traced.out_tree, traced.out_info
        self._names, self._avals, self._objects = traced.arg_names, traced.args, bound
        self._bound = tuple(jax.tree.leaves(bound))
        self._in_place = InPlace.of(program, traced) if in_place else None
        if self._in_place:
            self.out_tree, self.out_info = self._in_place.results, traced.out_info[0]
        self._function = as_function(program, order)

    @property
    def batch(self) -> int:
        """Users that one run serves."""
        return 1

    @property
    def cache_bytes(self) -> int:
        """Bytes of KV cache that one run reads, all users."""
        return 0

    @property
    def conditions(self) -> str:
        """What modelled figures hold for: wafers, clock, batch, context, precision."""
        wafer, program = self.program.wafer, self.program
        return f"{program.wafers} x {wafer.name} at {wafer.clock_hz / 1e9:.3f} GHz, {program.conditions}"

    @cached_property
    def jitted(self):
        """The flat function, jitted: (tiles of bound weights, *leaves) -> (leaves, runs of counted bodies)."""
        if self._fixed:
            return jax.jit(self._function.run)
        return jax.jit(lambda tiles, *flat: self._function(*flat))

    @property
    def _fixed(self) -> bool:
        """There are bound weights, and no call changes them."""
        return bool(self._bound) and not (self._in_place and self._in_place.changed)

    @cached_property
    def tiles(self) -> tuple:
        """The bound weights as the PEs hold them, where that differs from how the model does; made once."""
        inputs = [*self._bound_leaves(), *self._avals[len(self._bound) :]]
        if not self._fixed or not jax.eval_shape(self._function.prepare, *inputs):
            return ()
        zeros = [jax.numpy.zeros((), a.dtype) if isinstance(a, jax.ShapeDtypeStruct) else a for a in inputs]
        return jax.jit(self._function.prepare)(*zeros)

    @cached_property
    def telemetry(self) -> Telemetry:
        """The modelled work of one call, each while loop and each branch taken once; a call returns its own, with the
        trips that it took."""
        return Telemetry(self.program)

    def __call__(self, *args: Any) -> tuple[Any, Telemetry]:
        """Outputs, and what the wafer did. Raises ArgumentError when an argument is not what was compiled for."""
        leaves = [*self._bound_leaves(), *self._check(args)]
        outputs, counts = self.jitted(self.tiles, *leaves)
        if self._in_place:
            objects = (*self._objects, *args)
            self._in_place.write_back(objects, leaves, outputs)
            outputs, self._bound = outputs[: self._in_place.count], tuple(jax.tree.leaves(self._objects))
        telemetry = Telemetry(self.program, tuple(map(int, jax.device_get(counts)))) if counts else self.telemetry
        return jax.tree.unflatten(self.out_tree, outputs), telemetry

    def seconds_on(self, wafer: Wafer) -> Any:
        """Modelled seconds of one call of this placed program on another wafer: a JAX function of its numbers, for
        `jax.grad` and `jax.vmap`. Placement, layouts and algorithms stay as they were compiled.

        >>> import dataclasses, jax, jax.numpy as jnp, wsc
        >>> exe = wsc.compile(lambda w, x: x @ w, jnp.ones((64, 32)), jnp.ones((1, 64)), weight_argnums=0)
        >>> bool(jax.grad(lambda hop: exe.seconds_on(dataclasses.replace(wsc.WSE3, hop_cycles=hop)))(1.0) > 0)
        True
        """
        if not isinstance(wafer, Wafer):
            raise ArgumentError(
                f"{type(wafer).__name__} is no wsc.Wafer: make one with dataclasses.replace(wsc.WSE3, ...)"
            )
        return Telemetry(dataclasses.replace(self.program, wafer=wafer)).seconds

    def simulate(
        self, *args: Any, stage: int | str | None = None, scale: float = 1.0, limit: int = LIMIT
    ) -> Simulation:
        """One placed stage cycle by cycle on the fabric simulator: every wavelet of its collectives and moves, its
        arithmetic as so many cycles a PE. Compare `.cycles` with the closed forms' `.modelled`, `.phases` one by one;
        `.run` has what links and queues carried and who waited for what.

        With the arguments of a call the wavelets carry what the PEs really add up, and `.outputs` are what the stage
        hands on; without, time alone is simulated. `stage`: its number or name, the most repeated one (a layer) unless
        told. `scale`: below 1, a cut-out of the region with its sides so much shorter, lines of fewer PEs with as much
        data each. Off-wafer links are left out. Raises ArgumentError, and CycleLimitError after `limit` cycles.

        >>> import jax.numpy as jnp, wsc
        >>> w, x = jnp.ones((64, 32)), jnp.ones((1, 64))
        >>> exe = wsc.compile(lambda w, x: x @ w, w, x, weight_argnums=0, grid=(8, 4))
        >>> found = exe.simulate(w, x)
        >>> found.equal, bool((found.outputs[0] == 64).all())
        (True, True)
        """
        leaves = [*self._bound_leaves(), *self._check(args)] if args else None
        return simulate_stage(self, leaves, stage, scale, limit)

    def as_text(self) -> str:
        """The placed program: stages, regions, memory maps, layouts and steps."""
        return self.program.as_text()

    def cost_analysis(self) -> dict[str, float]:
        """Modelled cost of one call, flat; cycles of the wafer's clock, bytes, joules, seconds."""
        return self.telemetry.as_dict()

    def alternatives(self) -> tuple[Serving, ...]:
        """What else could run this program, in one table with the wafer it was compiled for: one step for its batch on
        GPUs, as many as hold it, by roofline with the efficiency that published serving reaches (see
        `wsc.machine.baselines`). Weights and cache are read once a step; modelled figures, all of them. The wafer is
        alone for programs far smaller than those the efficiencies were fitted to, and for other than decode steps."""
        t, passes, batch = self.telemetry, self.program.passes, self.batch
        found = [baselines.of_wafer(t.wafer, float(t.seconds) * passes, batch, self.program.wafers)]
        weights, state = self.memory_analysis().weight_bytes, self.cache_bytes / batch
        flops = float(t.total.flops) / batch
        if GPU_BYTES[0] <= weights <= GPU_BYTES[1] and self.program.tokens == passes == 1:
            layers = [s.template for s in self.program.stages].count(self.program.layer.template)
            chips = (baselines.H100, baselines.H200, baselines.A100, baselines.B200)
            found += [baselines.decode(chip, weights, state, flops, batch, None, layers) for chip in chips]
            if LPU_BYTES[0] <= weights <= LPU_BYTES[1]:
                sizes = {w.name: math.prod(w.shape) for s in self.program.stages for w in s.weights}
                in_8_bits = float(sum(sizes.values()))
                found.append(baselines.decode(baselines.GROQ_LPU, in_8_bits, state, flops, batch, None, layers))
        return tuple(found)

    def memory_analysis(self) -> MemoryStats:
        """Where the bytes are, summed over all PEs of all regions."""
        stages = self.program.regions
        weights = [w for s in stages for w in s.weights]
        by_kind = dict.fromkeys(("code", "state", "buffer"), 0)
        for stage in stages:
            for a in stage.memory:
                if a.kind in by_kind:
                    by_kind[a.kind] += a.nbytes * stage.region.pes
        unique = {w.name: w.nbytes for w in weights}
        replicated = sum(w.nbytes * w.copies for w in weights)
        stored = sum(w.stored_bytes for w in weights)
        return MemoryStats(
            argument_size_in_bytes=sum(nbytes(a.shape, a.dtype) for a in self._avals),
            output_size_in_bytes=sum(nbytes(o.shape, o.dtype) for o in jax.tree.leaves(self.out_info)),
            temp_size_in_bytes=by_kind["buffer"],
            generated_code_size_in_bytes=by_kind["code"],
            weight_bytes=sum(unique.values()),
            replicated_bytes=replicated,
            padding_bytes=stored - replicated,
            stored_weight_bytes=stored,
            state_bytes=by_kind["state"],
            fullest_pe_bytes=max(s.used_bytes for s in stages),
            sram_bytes_per_pe=int(self.program.wafer.sram_bytes),
        )

    def report(self) -> Report:
        """A report that prints as tables in a terminal and renders in a notebook."""
        return Report(self)

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()

    def __repr__(self) -> str:
        t = self.telemetry
        return (
            f"<wsc {type(self).__name__}: {len(self.program.stages)} stages, {t.cycles:,.0f} cycles "
            f"({t.seconds * 1e6:,.1f} us) on {self.program.wafers} x {t.wafer.name}, {self.program.conditions}>"
        )

    def _bound_leaves(self) -> tuple:
        for leaf in self._bound:
            if isinstance(leaf, jax.ShapeDtypeStruct):
                raise ArgumentError(
                    "this program was compiled from a model without weights (abstract); its cost can be read, but to "
                    "run it compile a model that has them, such as wsc.models.load(...)"
                )
        return self._bound

    @cached_property
    def _given(self) -> Any:
        """The structure of a call's own arguments."""
        if not self._bound:
            return self.in_tree
        return jax.tree.structure(jax.tree.unflatten(self.in_tree, [0] * len(self._avals))[1:])

    def _check(self, args: tuple) -> list:
        """The leaves of a call's arguments, each as it was compiled for."""
        leaves, tree = jax.tree.flatten(args)
        names, avals = self._names[len(self._bound) :], self._avals[len(self._bound) :]
        expected = self._given
        want = len(expected.children()) if expected.num_nodes else 0
        if len(args) != want:
            raise ArgumentError(
                f"the program takes {want} arguments ({', '.join(names)}) and was called with {len(args)}"
            )
        if tree != expected:
            raise ArgumentError(f"arguments compiled as {expected} and called as {tree}: pass the same structure")
        for name, aval, leaf in zip(names, avals, leaves, strict=True):
            if isinstance(leaf, jax.ShapeDtypeStruct):
                raise ArgumentError(f"argument '{name}' is only a shape: call the program with an array")
            try:
                of_jax = isinstance(leaf, jax.Array)  # whose shape and dtype need no search
                shape = leaf.shape if of_jax else jax.numpy.shape(leaf)
                dtype = leaf.dtype if of_jax else jax.numpy.result_type(leaf)
            except TypeError as error:
                raise ArgumentError(f"argument '{name}' is a {type(leaf).__name__}, not an array: {error}") from error
            if shape != aval.shape or dtype != aval.dtype:
                raise ArgumentError(
                    f"argument '{name}' compiled with {_text(aval.dtype, aval.shape)} and called with "
                    f"{_text(dtype, shape)}: pass what it was compiled for, or compile again"
                )
        return leaves


def _text(dtype, shape) -> str:
    return f"{dtype}[{','.join(map(str, shape))}]"


class TimedLayer(Executable):
    """One layer as another system's kernels time it: its decode step, and `prefill`, the layer for a whole prompt."""

    def __init__(self, program: Program, traced: Traced, order: str, prefill: Executable):
        super().__init__(program, traced, order)
        self.prefill = prefill
