"""Transforms and direct solvers: one line or matrix is worked on by one PE, many of them by many PEs.

Nothing here is cut over PEs but the batch: what does not fit the SRAM of one PE is refused when memory is planned.
Operation counts are those of the textbook algorithms (Golub and Van Loan, Matrix Computations), done by vector
instructions along columns. Iterative routines (eigenvalues, singular values) have no rule.
"""

import math

from wsc.layout import Layout
from wsc.lowering.rules.indexing import put_together
from wsc.lowering.rules.registry import Lowered, Op, Operand, Where, rule, vector
from wsc.machine.steps import Compute, Step


def fft_flops(n: int, real: bool = False) -> int:
    """Real operations of a transform of n points, 5 n lg n; half of it for a real one. Where n has a prime factor above
    7, Bluestein's: three transforms of a power of two of at least 2 n - 1, and three products.

    >>> fft_flops(8), fft_flops(8, real=True), fft_flops(11)
    (120, 60, 2976)
    """
    if n <= 1:
        return 0
    rest = n
    for p in (2, 3, 5, 7):
        while rest % p == 0:
            rest //= p
    if rest > 1:
        m = 1 << (2 * n - 2).bit_length()
        return 3 * fft_flops(m) + 3 * 6 * m
    flops = 5 * n * math.log2(n)
    return math.ceil(flops / 2 if real else flops)


@rule("fft")
def fft_rule(op: Op, where: Where) -> Lowered:
    """The transformed dimensions are put together on a PE, whose lines are shared out: 5 n lg n a line."""
    operand, lengths = op.ins[0], op.params["fft_lengths"]
    rank = operand.rank
    dims = list(range(rank - len(lengths), rank))
    at = put_together(operand.laid(), operand.shape, dims, where)
    real = str(op.params["fft_type"]).upper().endswith(("RFFT", "2", "3"))  # RFFT and IRFFT, by name or number
    total, points = 0, math.prod(lengths)
    for i, n in enumerate(lengths):
        last = i == len(lengths) - 1
        lines = points // n if last or not real else points // lengths[-1] * (lengths[-1] // 2 + 1) // n
        total += lines * fft_flops(n, real and last)
    batch = math.prod(operand.shape[: dims[0]])
    local = math.prod(at.local(operand.shape)[: dims[0]])
    half = max(1, points // 2)  # butterflies of one stage are one vector
    pes = min(where.grid.pes, at.parts.pes * at.copies(where.grid))
    calls = max(1, -(-total * local // half))
    step = Compute("vector", calls, half, 4, total * batch, pes, straight=where.strategy.compiled)
    return Lowered((at,), (at,), (step,))


def _lines(operand: Operand, where: Where) -> tuple[Layout, int, int]:
    """(layout with whole matrices, matrices a PE, matrices in all)."""
    dims = [operand.rank - 2, operand.rank - 1]
    at = put_together(operand.laid(), operand.shape, dims, where)
    return at, math.prod(at.local(operand.shape)[:-2]), math.prod(operand.shape[:-2])


def _columns(flops: int, length: int, lines: tuple[Layout, int, int], itemsize: int, where: Where) -> Compute:
    """`flops` of one matrix as multiply-accumulates along columns of an average `length`."""
    at, local, batch = lines
    pes = min(where.grid.pes, at.parts.pes * at.copies(where.grid))
    calls = max(1, local * -(-flops // (2 * max(1, length))))
    return Compute("fmac", calls, max(1, length), itemsize, flops * batch, pes, straight=where.strategy.compiled)


def _scalars(at: Layout, operand: Operand, count: int, kind: str, where: Where) -> Step:
    """`count` divisions or roots a matrix."""
    batch = operand.shape[:-2]
    return vector(at.take(range(len(batch))), batch, operand.itemsize, where, kind, calls=count, flops=count)


@rule("cholesky")
def cholesky_rule(op: Op, where: Where) -> Lowered:
    """n^3 / 3 operations, and a root and a division a column, on one PE."""
    operand = op.ins[0]
    n, lines = operand.shape[-1], _lines(operand, where)
    columns = _columns(n**3 // 3, -(-n // 3), lines, operand.itemsize, where)
    each = [_scalars(lines[0], operand, n, kind, where) for kind in ("divide", "transcendental")]
    return Lowered((lines[0],), (lines[0],), (columns, *each))


@rule("lu")
def lu_rule(op: Op, where: Where) -> Lowered:
    """With partial pivoting, m n^2 - n^3 / 3 operations for m >= n, and a search and a division a column, on one PE."""
    operand = op.ins[0]
    m, n = max(operand.shape[-2:]), min(operand.shape[-2:])
    lines = _lines(operand, where)
    columns = _columns(m * n * n - n**3 // 3, -(-m // 2), lines, operand.itemsize, where)
    batch = lines[0].take(range(operand.rank - 2))
    search = vector(batch, operand.shape[:-2], operand.itemsize, where, "sum", calls=n * -(-m // 2), flops=0)
    outs = tuple(
        lines[0].take([*range(operand.rank - 2), *[None] * (len(s) - operand.rank + 2)]) for s in op.out_shapes
    )
    return Lowered((lines[0],), outs, (columns, search, _scalars(lines[0], operand, n, "divide", where)))


@rule("lu_pivots_to_permutation")
def pivots_rule(op: Op, where: Where) -> Lowered:
    """One exchange of two numbers a pivot, on one PE."""
    operand, shape = op.ins[0], op.out_shapes[0]
    at = put_together(operand.laid(), operand.shape, [operand.rank - 1], where)
    out_at = at.take([*range(operand.rank - 1), None])
    return Lowered((at,), (out_at,), (vector(out_at, shape, operand.itemsize, where, "sum", calls=4, flops=0),))


@rule("qr")
def qr_rule(op: Op, where: Where) -> Lowered:
    """Householder's, 2 n^2 (m - n / 3) operations for R and as many for Q, with a root and a division a column."""
    operand = op.ins[0]
    m, n = max(operand.shape[-2:]), min(operand.shape[-2:])
    lines = _lines(operand, where)
    full = operand.shape[-2] if op.params.get("full_matrices") else n
    flops = 2 * n * n * m - 2 * n**3 // 3 + 2 * n * full * (m - n // 3)
    columns = _columns(flops, -(-m // 2), lines, operand.itemsize, where)
    each = [_scalars(lines[0], operand, n, kind, where) for kind in ("divide", "transcendental")]
    outs = tuple(
        lines[0].take([*range(operand.rank - 2), *[None] * (len(s) - operand.rank + 2)]) for s in op.out_shapes
    )
    return Lowered((lines[0],), outs, (columns, *each))


@rule("triangular_solve")
def triangular_solve_rule(op: Op, where: Where) -> Lowered:
    """n^2 operations a right-hand side, and a division an unknown unless the diagonal is one, on one PE."""
    matrix, b = op.ins
    n, sides = matrix.shape[-1], math.prod(b.shape[-2:]) // max(1, matrix.shape[-1])
    lines = _lines(matrix, where)
    columns = _columns(n * n * sides, -(-n // 2), lines, b.itemsize, where)
    division = () if op.params.get("unit_diagonal") else (_scalars(lines[0], matrix, n, "divide", where),)
    return Lowered((lines[0], lines[0]), (lines[0],), (columns, *division))


@rule("tridiagonal_solve")
def tridiagonal_solve_rule(op: Op, where: Where) -> Lowered:
    """Thomas's, 3 operations a row of the matrix and 5 of each right-hand side, two divisions a row, on one PE."""
    b = op.ins[-1]
    n, sides = b.shape[-2], b.shape[-1]
    lines = _lines(b, where)
    rows = _columns((3 + 5 * sides) * n, sides, lines, b.itemsize, where)
    diagonal = lines[0].take(range(b.rank - 1))
    division = _scalars(lines[0], b, 2 * n, "divide", where)
    return Lowered((diagonal,) * 3 + (lines[0],), (lines[0],), (rows, division))
