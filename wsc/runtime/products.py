"""Sums of partial products that are not written out: a matrix product whose contracted dimension is cut into tiles of
few elements, multiplied while it is added up."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from wsc.runtime.order import FEW, STEP, along, apart, climb, exactly, levels, read, steps

EXACT = (jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64)  # rounded, so that products could be contracted
MOST = 8  # elements of a tile that are multiplied and added one by one, where there are as many rows
WIDE = 1 << 13  # elements of a sum from which memory decides the time, not the number of operations
COLUMNS = 128  # that lie side by side, so that what is added lies close in memory


@dataclass(frozen=True)
class Products:
    """[p, b, k, m] times [p, b, k, n], summed to [b, m, n]: PE p has the sum over k of lhs * rhs, every product rounded
    and the first k first; these are summed over PEs in the order of the named reduce or all-reduce."""

    algorithm: str
    shape: tuple[int, ...]
    pes: int
    batch: int
    tile: int
    rows: int
    columns: int

    @property
    def written_out(self) -> bool:
        """One addition after another, as the operands are."""
        return self.pes <= FEW and (self.rows == 1 or self.batch * self.rows * self.columns < WIDE)

    @cached_property
    def orders(self) -> list[np.ndarray]:
        """PEs [trips, lines, PEs] as they are added."""
        return steps(levels(self.algorithm, self.pes, self.shape)[0], self.pes, max(1, STEP // self.tile))

    @property
    def width(self) -> int:
        """Columns that lie side by side."""
        return COLUMNS if self.rows > 1 and self.columns % COLUMNS == 0 else self.columns

    def left(self, operand: jax.Array) -> tuple[jax.Array, ...]:
        """[p, b, k, m] as the sum takes it: [trips, lines, PEs, b, k, m] for each of `orders`."""
        return (operand,) if self.written_out else self._taken(operand, 0.0)

    def right(self, operand: jax.Array) -> tuple[jax.Array, ...]:
        """[p, b, k, n] as the sum takes it: [trips, lines, b, block, PEs, k, n] for each of `orders`."""
        if self.written_out:
            return (operand,)
        blocks = operand.reshape(self.pes, self.batch, self.tile, -1, self.width)
        return tuple(jnp.moveaxis(r, (2, 4), (4, 5)) for r in self._taken(blocks, -0.0))

    def _taken(self, operand: jax.Array, nothing: float) -> tuple[jax.Array, ...]:
        """By PE in the order of the sum; where no PE is left 0 in the one operand and -0.0 in the other: x + 0 * -0.0
        is x, for every x."""
        if any((order == self.pes).any() for order in self.orders):
            operand = jnp.concatenate([operand, jnp.full_like(operand[:1], nothing)])
        return tuple(operand[order] for order in self.orders)

    def sum(self, left: tuple[jax.Array, ...], right: tuple[jax.Array, ...], zero: jax.Array) -> jax.Array:
        """The sum [b, m, n] of `left` and `right` operands; `zero` is one that is `never` known to be."""
        first, *others = levels(self.algorithm, self.pes, self.shape)

        def add(
            total: jax.Array | None, taken: Any
        ) -> jax.Array:  # of [lines, PEs, b, k, m] and [lines, b, block, PEs, k, n]
            lhs, rhs = taken

            def product(pe, k):
                return exactly(lhs[:, pe, :, k, None, :, None] * rhs[:, :, :, pe, k, None, :], zero)

            for pe in range(lhs.shape[1]):
                part = product(pe, 0)
                for k in range(1, self.tile):
                    part = part + product(pe, k)
                total = part if total is None else total + part
            return cast(jax.Array, total)

        def rest(sums):
            for lines in others:
                sums = along(sums, lines)
            return sums[0]

        if self.written_out:
            (lhs,), (rhs,) = left, right
            parts = [add(None, (lhs[None, None, p], rhs[None, p, :, None, None])) for p in range(self.pes)]
            return rest(along([part[0, :, 0] for part in parts], first))
        left = tuple(read(operand, zero) for operand in left)
        sums = [total for both in zip(left, right, strict=True) for total in read(climb(add, both), zero)]
        return jnp.swapaxes(apart(rest(sums), zero), 1, 2).reshape(self.batch, self.rows, self.columns)
