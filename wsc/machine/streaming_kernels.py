"""Products of matrices that are cut over both axes of a rectangle of PEs: tokens along `x`, features along `y`.

As in weight streaming (Cerebras, "Scaling Up and Out", 2021), activations stay where they are and weights pass over
them: a weight that comes in meets the feature it multiplies on every PE of a row, which scales its tokens by it and
adds; the sums of a result's feature then run along the columns. Products of two activations send the tiles of one of
them round. Sizes are those of a PE's tiles: m, k, n elements, `batch` products at once; `rows` and `columns` are the
PEs among which one product is shared. Every kernel overlaps passing on with multiplying, through the PE's one ramp.
"""

from wsc.machine.kernels import tile_product, wavelets
from wsc.machine.steps import Compute, Reduce, Rounds, Shift, Step
from wsc.machine.wafer import Wafer

ROUND_WORDS = 512  # assumed: 2 KB for what comes in, 2 KB for what is in use meanwhile, 2 KB for sums that are made


def _sliced(m: int, k: int, n: int, batch: int, itemsize: int, wafer: Wafer) -> tuple[int, int, int, int]:
    """Slices of n and of k whose sums, and whose operand that comes in, are ROUND_WORDS at most; and how many of each:
    (n, k, slices of n, slices of k)."""

    def slices(length: int, each: int) -> int:
        """As few as have ROUND_WORDS at most, of a dimension with `each` elements beside every one of its own."""
        most = max(1, ROUND_WORDS * wafer.wavelet_bytes // max(1, each * itemsize))
        return -(-length // most)

    of_n = slices(n, batch * m)
    n = -(-n // of_n)
    of_k = slices(k, batch * n)
    return n, -(-k // of_k), of_n, of_k


def passing_weights(
    m: int, k: int, n: int, rows: int, columns: int, itemsize: int, wafer: Wafer, flops: int = 0, pes: int = 1
) -> tuple[Step, ...]:
    """x[m@x, k@y] times a streamed W[k, n] -> [m@x, n@y]. A round takes the weights of one PE's `n` features of the
    result: a row of PEs gets its k x n of them, multiplies, and the sums stream along the column to the PE that keeps
    them, so that the column's length is paid once. `rows` rounds, each cut so that little is on its way at once.

    >>> from wsc.machine.wafer import WSE3
    >>> rounds, first = passing_weights(100, 4, 4, 1000, 700, 2, WSE3)
    >>> rounds.times, first.pes
    (1000, 1000)
    """
    n, k, of_n, of_k = _sliced(m, k, n, 1, itemsize, wafer)
    times, came = rows * of_n * of_k, wavelets(k * n, itemsize, wafer)
    sums = -(-wavelets(m * n, itemsize, wafer) // of_k)  # they are passed on with the last slice of k
    product = tile_product(m, k, n, itemsize, wafer, pes, flops // times, apart=True)
    adding = Compute("sum", 1, sums, itemsize, 0, pes)
    passing = Shift(1, came + sums, came * (columns - 1) + sums, rows, came + sums)
    rounds = Rounds(times, (product, adding) if rows > 1 else (product,), (passing,), transfers=2, tasks=2)
    return (rounds, Reduce("chain", rows, rows - 1, sums, columns)) if rows > 1 else (rounds,)


def turning(
    m: int, k: int, n: int, ring: int, line: int, itemsize: int, wafer: Wafer, flops: int = 0, pes: int = 1,
    batch: int = 1,
) -> tuple[Step, ...]:  # fmt: skip
    """A[m@ring, k@line] times B[n@ring, k@line], the contracted dimension along one axis for both: B's tiles go round a
    ring of `ring` PEs; in every round the sums of m x n stream along `line` PEs to the one that keeps them. The result
    lies [m@ring, n@line]. Weight gradients (k: tokens), and scores of attention (k: features of a head)."""
    n, k, of_n, of_k = _sliced(m, k, n, batch, itemsize, wafer)
    times, tile = ring * of_n * of_k, wavelets(batch * k * n, itemsize, wafer)
    sums = -(-wavelets(batch * m * n, itemsize, wafer) // of_k)
    product = tile_product(m, k, n, itemsize, wafer, pes, flops // times, batch, apart=True)
    adding = Compute("sum", 1, sums, itemsize, 0, pes)
    hops, passed = min(2, ring - 1), tile * (ring > 1) + sums * (line > 1)
    passing = Shift(hops, passed, passed * hops, pes, passed)
    rounds = Rounds(times, (product, adding) if line > 1 else (product,), (passing,), transfers=2, tasks=2)
    return (rounds, Reduce("chain", line, line - 1, sums, max(1, pes // line))) if line > 1 else (rounds,)


def meeting(
    m: int, k: int, n: int, rows: int, columns: int, itemsize: int, wafer: Wafer, flops: int = 0, pes: int = 1,
    batch: int = 1,
) -> tuple[Step, ...]:  # fmt: skip
    """A[m@x, k@y] times B[k@x, n@y] -> [m@x, n@y]: A's tiles go round the columns and B's round the rows, so that
    equal parts of k meet, as in MeshGEMM on a rectangle. `k` is the whole contracted dimension."""
    times = max(rows, columns)
    part = -(-k // times)
    amount = wavelets(batch * m * part, itemsize, wafer) * (rows > 1)
    amount += wavelets(batch * part * n, itemsize, wafer) * (columns > 1)
    hops = min(2, times - 1)
    product = tile_product(m, part, n, itemsize, wafer, pes, flops // times, batch, apart=True)
    passing = Shift(hops, amount, amount * hops, pes, amount)
    aligned = Rounds(times // 2, (), (passing,), transfers=2, tasks=4)
    rounds = Rounds(times, (product,), (passing,), transfers=4, tasks=4)
    return (aligned, rounds) if times > 1 else (rounds,)
