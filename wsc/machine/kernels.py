"""Known kernels as lists of steps: what one rectangle of PEs does, and which of it happens at the same time.

Sizes are those of the whole problem; a `grid` of (rows, columns) PEs shares them out, tiles rounded up. Every function
says whether communication and computation overlap. Results are tuples of steps, to be read by `cost` and the like.
"""

from wsc.machine.collectives import Costs, cheapest_all_reduce
from wsc.machine.cost import cost
from wsc.machine.steps import AllReduce, Compute, Multicast, Reduce, Rounds, Shift, Step
from wsc.machine.wafer import Wafer

Grid = tuple[int, int]


def _up(n: int, parts: int) -> int:
    return -(-n // parts)


def wavelets(elements: int, itemsize: int, wafer: Wafer) -> int:
    """32-bit wavelets that carry `elements`; two 16-bit ones share a word."""
    return -(-elements * itemsize // wafer.wavelet_bytes)


def tile_product(
    m: int, k: int, n: int, itemsize: int, wafer: Wafer, pes: int = 1, flops: int = 0, batch: int = 1,
    along: str | None = None, apart: bool = False,
) -> Compute:  # fmt: skip
    """[m, k] x [k, n] on every PE, `batch` times: vector instructions along a free dimension of one operand, scaled by
    elements of the other, in a hardware map within a loop, in the best order of the loops. `along` "m" or "n" is that
    dimension; the map then runs along the other one ("m") or along k ("n"), as in the published kernels. The banks of
    accumulators and operand conflict, unless accumulators are kept `apart`: twice, in two banks, so that every row
    of the operand finds one of them in another bank than its own."""
    if along is not None:
        orders = [(m, k, n)] if along == "m" else [(n, m, k)]
    elif apart:  # one accumulator at a time is summed to its end
        orders = [(n, m, k), (m, n, k)]
    else:
        orders = [(n, m, k), (n, k, m), (m, k, n), (m, n, k)]
    steps = [
        Compute(
            "fmac",
            batch * loop * mapped,
            length,
            itemsize,
            flops,
            pes,
            maps=batch * loop,
            conflict=0.0 if apart else 1.0,
        )
        for length, loop, mapped in orders
    ]
    return min(steps, key=lambda step: cost(step, wafer).cycles)


def all_reduce(pes: int, elements: int, itemsize: int, wafer: Wafer, lines: int = 1) -> AllReduce:
    """The cheapest all-reduce among neighbours."""
    amount = wavelets(elements, itemsize, wafer)
    name, shape = cheapest_all_reduce(pes, amount, pes - 1, Costs.of(wafer), int(wafer.colors))
    return AllReduce(name, pes, pes - 1, amount, lines, shape)


def gemv(k: int, n: int, grid: Grid, itemsize: int, wafer: Wafer) -> tuple[Step, ...]:
    """y[n] = x[k] W[k, n], k along the rows: products, then an all-reduce along each column. No overlap."""
    rows, columns = grid
    product = tile_product(1, _up(k, rows), _up(n, columns), itemsize, wafer, rows * columns, 2 * k * n)
    return product, all_reduce(rows, _up(n, columns), itemsize, wafer, columns)


def gemm_summa(m: int, k: int, n: int, grid: Grid, itemsize: int, wafer: Wafer) -> tuple[Step, ...]:
    """The vendor's sample: in each round one column of A tiles goes along the rows and one row of B tiles along the
    columns, received in the background through the one ramp, then tiles are multiplied, each vector instruction in a
    loop of its own. No overlap: the next round waits for the product."""
    rows, columns = grid
    mt, kt, nt = _up(m, rows), _up(k, columns), _up(n, columns)
    a, b = wavelets(mt * kt, itemsize, wafer), wavelets(kt * nt, itemsize, wafer)
    line = max(rows, columns)
    send = Multicast(line, line - 1, a + b, rows + columns)
    product = Compute("fmac", columns * kt * nt, mt, itemsize, 2 * m * k * n, rows * columns, conflict=1.0)
    return Rounds(columns, (), (send,), transfers=0, tasks=0), product


def _exchange_rounds(
    m: int, k: int, n: int, grid: Grid, itemsize: int, wafer: Wafer, hops: int, flops: int, along
) -> Rounds:
    """A round of neighbour exchange: both operands' tiles come in through the one ramp while the last ones are
    multiplied (overlapped); four transfers are set up, four tasks switched."""
    rows, columns = grid
    pes = rows * columns
    mt, kt, nt = _up(m, rows), _up(k, columns), _up(n, columns)
    amount = wavelets(mt * kt, itemsize, wafer) + wavelets(kt * nt, itemsize, wafer)
    passing = Shift(hops, amount, amount * hops * columns, rows, amount)
    product = tile_product(mt, kt, nt, itemsize, wafer, pes, flops // columns, along=along)
    return Rounds(columns, (product,), (passing,), transfers=4, tasks=4)


def _alignment(m: int, k: int, grid: Grid, itemsize: int, wafer: Wafer) -> Rounds:
    """Before the first round every row passes its tiles on until they meet the right ones: at most half the columns."""
    rows, columns = grid
    amount = wavelets(_up(m, rows) * _up(k, columns), itemsize, wafer)
    return Rounds(columns // 2, (), (Shift(2, amount, 2 * amount * columns, rows, amount),), transfers=2, tasks=4)


def gemm_cannon(m: int, k: int, n: int, grid: Grid, itemsize: int, wafer: Wafer) -> tuple[Step, ...]:
    """Cannon's: tiles go round the ring of each row and column; the way back of a ring spans the whole line. Passing on
    overlaps with multiplying."""
    flops = 2 * m * k * n
    columns = grid[1]
    return (
        _alignment(m, k, grid, itemsize, wafer),
        _exchange_rounds(m, k, n, grid, itemsize, wafer, max(1, columns - 1), flops, None),
    )


def gemm_interleaved(
    m: int, k: int, n: int, grid: Grid, itemsize: int, wafer: Wafer, along: str | None = None
) -> tuple[Step, ...]:
    """MeshGEMM (WaferLLM, OSDI 2025): as Cannon's, the ring folded so that neighbours of the ring are at most two hops
    apart. Passing on overlaps with multiplying; the alignment before does not."""
    flops = 2 * m * k * n
    return (
        _alignment(m, k, grid, itemsize, wafer),
        _exchange_rounds(m, k, n, grid, itemsize, wafer, 2, flops, along),
    )


def gemm_transposed(
    m: int, k: int, n: int, grid: Grid, itemsize: int, wafer: Wafer, along: str | None = None
) -> tuple[Step, ...]:
    """A[m, k] B[n, k] with k along the columns of both: B's tiles go round each column's ring; each round's partial
    sums stream along the row to the PE that keeps them, one instruction a PE. Only the passing on overlaps; the sums
    of the rounds follow one another through the row, so that its length is paid once."""
    rows, columns = grid
    pes = rows * columns
    mt, kt, nt = _up(m, rows), _up(k, columns), _up(n, columns)
    amount, partial = wavelets(kt * nt, itemsize, wafer), wavelets(mt * nt, itemsize, wafer)
    product = tile_product(mt, kt, nt, itemsize, wafer, pes, 2 * m * k * n // columns, along=along)
    adding = Compute("sum", 1, partial, itemsize, 0, pes)
    passing = Shift(2, amount, 2 * amount * rows, columns, amount)
    first = Reduce("chain", columns, columns - 1, partial, rows)
    return Rounds(columns, (product, adding), (passing,), transfers=2, tasks=4), first


def rmsnorm(width: int, lines: int, grid: Grid, itemsize: int, wafer: Wafer) -> tuple[Step, ...]:
    """x * w / rms(x), `width` along the rows: squares, their sum, an all-reduce, one root, two products. No overlap."""
    tile, pes = _up(width, grid[0]) * lines, grid[0] * grid[1]
    one = Compute("vector", 1, tile, itemsize, width * lines, pes)
    total = Compute("sum", lines, _up(width, grid[0]), itemsize, width * lines, pes)
    root = Compute("transcendental", lines, 1, itemsize, lines, pes)
    return one, total, all_reduce(grid[0], lines, itemsize, wafer, grid[1]), root, one, one


def rope(width: int, grid: Grid, itemsize: int) -> tuple[Step, ...]:
    """Pairs that rotate together lie on one PE: four products, a difference and a sum of half the width. No fabric."""
    half = Compute("vector", 1, _up(_up(width, grid[0]), 2), itemsize, width // 2, grid[0] * grid[1])
    return (half,) * 6


def softmax(length: int, heads: int, grid: Grid, itemsize: int, wafer: Wafer) -> tuple[Step, ...]:
    """Over `length` along the rows, for `heads` a column: maximum, all-reduce, exp, sum, all-reduce, division (one a
    head, then products). No overlap."""
    tile, pes, work = _up(length, grid[0]) * heads, grid[0] * grid[1], length * heads
    reach = all_reduce(grid[0], heads, itemsize, wafer, grid[1])
    one = Compute("vector", 1, tile, itemsize, work, pes)
    folded = Compute("sum", heads, _up(length, grid[0]), itemsize, work, pes)
    exp = Compute("transcendental", 1, tile, itemsize, work, pes)
    inverse = Compute("divide", heads, 1, itemsize, heads, pes)
    return folded, reach, one, exp, folded, reach, inverse, one


def attention(
    context: int, heads: int, kv_heads: int, width: int, grid: Grid, itemsize: int, wafer: Wafer
) -> tuple[Step, ...]:
    """One token's attention over a cache of `context`, cut along the rows, with heads of `width` along the columns:
    scores, summed over the PEs that share a head; softmax along the rows; values, summed along the rows. No overlap."""
    rows, columns = grid
    pes = rows * columns
    per_head = max(1, columns // kv_heads)  # PEs that share a KV head
    groups = heads // kv_heads * _up(kv_heads, columns)
    tokens, features = _up(context, rows), _up(width, per_head)
    scores = tile_product(groups, features, tokens, itemsize, wafer, pes, 2 * context * heads * width)
    values = tile_product(groups, tokens, features, itemsize, wafer, pes, 2 * context * heads * width)
    head_sum = all_reduce(per_head, groups * tokens, itemsize, wafer, rows * kv_heads)
    return (
        scores,
        head_sum,
        *softmax(context, groups, (rows, columns), itemsize, wafer),
        values,
        all_reduce(rows, groups * features, itemsize, wafer, columns),
    )


def stencil_direct(wafer: Wafer, grid: Grid = (5, 5)) -> tuple[Step, ...]:
    """Star stencil of radius 1, one 32-bit value a PE, no tasks: send to four sides, take in four, add up, scale.
    Where an instruction may read two fabric operands, two of them take in all four values; else each value is first
    moved to memory, and three sums follow. No overlap."""
    pes = grid[0] * grid[1]
    taken = 2 if wafer.fabric_inputs >= 2 else 4
    instructions = 1 + taken + (taken - 1) + 1  # send, take in, add up, scale
    passing = Rounds(1, (), (Shift(1, 0, 0, pes, 0),), transfers=0, tasks=0)
    return passing, Compute("vector", instructions, 1, 4, 5 * pes, pes, bare=True)


def star_stencil(tile: int, grid: Grid, wafer: Wafer, radius: int = 1) -> tuple[Step, ...]:
    """2-D star stencil, `tile` x `tile` 32-bit cells a PE. Edges come in from four sides through the one ramp, in the
    background, and end in a task; then one instruction a neighbour over all cells, its reads from one of four banks by
    chance, one that scales, and a task. No overlap of exchange and sums."""
    pes, cells = grid[0] * grid[1], tile * tile
    edges = 4 * radius * tile
    passing = Rounds(1, (), (Shift(radius, edges, edges * radius, pes, edges),), transfers=0, tasks=2)
    adding = Compute("fmac", 4 * radius, cells, 4, 8 * radius * cells * pes, pes, conflict=0.25)
    return passing, adding, Compute("vector", 1, cells, 4, cells * pes, pes)


def stencil_column(cells: int, radius: int, operations: int, grid: Grid) -> tuple[Step, ...]:
    """3-D star stencil, a column of `cells` 32-bit values on every PE: the column goes out to four sides and 4 * radius
    columns come in through the one ramp, then `operations` element-wise operations a cell. No overlap, as measured
    busy shares of about 0.7 say."""
    pes = grid[0] * grid[1]
    incoming = (4 * radius + 4) * cells
    passing = Shift(radius, incoming, incoming * radius, pes, incoming)
    return passing, Compute("fmac", operations, cells, 4, operations * cells * pes, pes, maps=1)
