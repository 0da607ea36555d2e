"""Random numbers: a counter is hashed under a key, so every PE makes its own elements and nothing travels but the key.

The key and its children are small and lie whole on every PE. Operations are those of the generator the key names.
"""

import math

from wsc.lowering.layout import whole
from wsc.lowering.rules.elementwise import main_layout, worked
from wsc.lowering.rules.registry import Lowered, Op, Where, default_layout, rule
from wsc.lowering.rules.work import COUNTERS, THREEFRY, WORK, Work

# Marsaglia and Tsang's rejection sampling: a normal number, a uniform one and two logarithms a trial; PEs work in lock
# step on vectors, so a second trial is made for the few elements that need one, and further ones are not counted.
_TRIALS = 2
_KEYS = ("random_split", "random_fold_in", "random_seed")
RANDOM = {*COUNTERS, *_KEYS, "random_bits", "rng_bit_generator", "random_gamma"}  # what `random_work` counts
_NAMES = {"fry": "threefry2x32", "fry4": "threefry4x32", "rbg": "philox4x32", "urbg": "philox4x32"}


def _hash(generator: str) -> tuple[Work, int]:
    """Operations of one block of a generator, by its name or tag, and the words of 32 bits it makes."""
    return COUNTERS.get(_NAMES.get(generator, generator), (THREEFRY, 2))


def _of_key(op: Op) -> str:
    """The generator of a key, from its dtype such as "key<fry>"; threefry, JAX's default, where that is not known."""
    dtype = op.ins[0].dtype if op.ins else ""
    return dtype.removeprefix("key<").removesuffix(">") if dtype.startswith("key<") else "fry"


def word_work(generator: str = "fry") -> int:
    """Operations of one word of 32 random bits; a block that is cut short is counted by its words.

    >>> word_work()
    60
    """
    block, words = _hash(generator)
    return math.ceil(block.vector / words)


def random_work(op: Op) -> Work | None:
    """Operations of one element of what draws random numbers or makes keys; None for anything else."""
    if op.name in COUNTERS:
        return _hash(op.name)[0]
    if op.name in ("random_bits", "rng_bit_generator"):
        generator = "philox4x32" if op.name == "rng_bit_generator" else _of_key(op)
        return Work(word_work(generator) * max(1, op.out_itemsizes[-1] // 4))
    if op.name == "random_gamma":
        return _gamma_work(op)
    return _hash(_of_key(op))[0] if op.name in _KEYS else None


def _gamma_work(op: Op) -> Work:
    """Rejection sampling, two trials an element: three words and an inverse error function, two logarithms, more."""
    trial = Work(3 * word_work(_of_key(op)) + 10, 0, 2) + WORK["erf_inv"]
    boost = Work(word_work(_of_key(op)) + 3, 1, 2)  # for alpha below 1: a power of a uniform number; a root
    return trial.times(_TRIALS) + boost


@rule(*COUNTERS)
def counter_rule(op: Op, where: Where) -> Lowered:
    """Blocks of a counter-based generator, one an element; every result is one word of the block."""
    shape = op.out_shapes[0]
    at = main_layout(op.ins, shape, where)
    wanted = tuple(at if o.shape == shape else whole(o.rank) for o in op.ins)
    return Lowered(wanted, (at,) * len(op.out_shapes), worked(_hash(op.name)[0], at, shape, 4, where))


@rule("random_bits", "rng_bit_generator")
def random_bits_rule(op: Op, where: Where) -> Lowered:
    """Words of the generator of the key, each PE its own; rng_bit_generator counts as philox4x32 and returns a key."""
    shape, done = op.out_shapes[-1], random_work(op) or Work(1)
    at = default_layout(shape, where)
    outs = tuple(whole(len(s)) for s in op.out_shapes[:-1])
    return Lowered(tuple(whole(o.rank) for o in op.ins), (*outs, at), worked(done, at, shape, 4, where))


@rule(*_KEYS)
def key_rule(op: Op, where: Where) -> Lowered:
    """One block a new key, on every PE."""
    at = whole(len(op.out_shapes[0]))
    return Lowered(
        tuple(whole(o.rank) for o in op.ins), (at,), worked(_hash(_of_key(op))[0], at, op.out_shapes[0], 4, where)
    )


@rule("random_wrap", "random_unwrap", "random_clone")
def key_view_rule(op: Op, where: Where) -> Lowered:
    """A key and its words are the same bytes."""
    return Lowered((whole(op.ins[0].rank),), (whole(len(op.out_shapes[0])),), ())


@rule("random_gamma")
def random_gamma_rule(op: Op, where: Where) -> Lowered:
    """Every PE draws its own elements."""
    alpha, shape = op.ins[1], op.out_shapes[0]
    at = default_layout(shape, where) if alpha.layout is None else alpha.layout
    return Lowered((whole(op.ins[0].rank), at), (at,), worked(_gamma_work(op), at, shape, 4, where))
