"""How many operations one element takes: those that are more than one vector instruction, division or scalar function.

No instruction set of the wafer has these functions, so each is counted as the usual program for it: a count's source
is that program. Both sides of a selection are worked out, as vector code does. Where a series stops by its own error,
`TERMS` of it are counted (assumed).
"""

from dataclasses import dataclass

TERMS = 32  # assumed: terms until a series or continued fraction is exact in 32 bits, XLA's bounds are 200 and 2,000


@dataclass(frozen=True)
class Work:
    """Operations of one element by kind, as `wsc.machine.steps.Compute` names them, and the program they count.

    >>> (Work(vector=2) + Work(divide=1)).flops
    3
    """

    vector: int = 0
    divide: int = 0
    transcendental: int = 0
    source: str = ""

    def __add__(self, other: "Work") -> "Work":
        return self.plus(other.vector, other.divide, other.transcendental)

    def plus(self, vector: int = 0, divide: int = 0, transcendental: int = 0, source: str = "") -> "Work":
        """The same with more operations, and a source of its own."""
        return Work(
            self.vector + vector, self.divide + divide, self.transcendental + transcendental, source or self.source
        )

    def times(self, n: int, source: str = "") -> "Work":
        """Done `n` times."""
        return Work(self.vector * n, self.divide * n, self.transcendental * n, source or self.source)

    @property
    def flops(self) -> int:
        """Operations of one element."""
        return self.vector + self.divide + self.transcendental

    @property
    def kinds(self) -> tuple[tuple[str, int], ...]:
        """(kind, operations) of the kinds that occur, slowest last."""
        every = (("vector", self.vector), ("divide", self.divide), ("transcendental", self.transcendental))
        return tuple((kind, count) for kind, count in every if count)


_LGAMMA = Work(22, 8, 4, "Lanczos, 8 terms, a division each; two logarithms; reflection: sine, logarithm")
_ZETA = Work(70, 2, 20, "Euler-Maclaurin: ten powers of two functions each, twelve Bernoulli terms")
_IGAMMA = (_LGAMMA + Work(18 * TERMS, 2 * TERMS, 2)).plus(
    source=f"series and continued fraction, {TERMS} terms each (assumed), prefactor by lgamma"
)

# One element is one vector instruction, division or scalar function where a name is not listed here.
WORK: dict[str, Work] = {
    "clamp": Work(2, source="a maximum and a minimum"),
    "population_count": Work(12, source="sums of bits by halves: shifts, masks and adds"),
    "clz": Work(27, source="five shifts and ors, a complement, then as population_count"),
    "nextafter": Work(8, source="the bits as an integer plus or minus one, zeros and signs selected"),
    "mulhi": Work(15, source="four products of 16-bit halves, shifted and added"),
    "reduce_precision": Work(8, source="rounding of the bits: shift, mask, two adds, mask, range selected"),
    "rem": Work(3, 1, source="x - trunc(x / y) y"),
    "pow": Work(1, 0, 2, "exp(y log x)"),
    "tan": Work(0, 1, 2, "sine over cosine"),
    "atan2": Work(4, 1, 1, "arc tangent of the quotient, quadrant selected"),
    "asin": Work(3, 1, 2, "atan2(x, sqrt(1 - x^2))"),
    "acos": Work(3, 1, 2, "atan2(sqrt(1 - x^2), x)"),
    "sinh": Work(2, 1, 1, "e - 1/e over two, e = exp x"),
    "cosh": Work(2, 1, 1, "e + 1/e over two, e = exp x"),
    "asinh": Work(4, 0, 2, "log(|x| + sqrt(x^2 + 1))"),
    "acosh": Work(3, 0, 2, "log(x + sqrt(x^2 - 1))"),
    "atanh": Work(3, 1, 1, "log((1 + x) / (1 - x)) / 2"),
    "erf_inv": Work(40, 0, 2, "Giles: two polynomials of degree 8 in log1p(-x^2) and its root"),
    "lgamma": _LGAMMA,
    "digamma": Work(40, 18, 4, "Lanczos, 8 terms, two divisions each; two logarithms; reflection: sine, cosine"),
    "zeta": _ZETA,
    "polygamma": (_ZETA + _LGAMMA).plus(2, 0, 1, "zeta times exp(lgamma)"),
    "bessel_i0e": Work(75, 2, 1, "Chebyshev, 18 and 7 terms of three operations, a root"),
    "bessel_i1e": Work(72, 2, 1, "Chebyshev, 17 and 7 terms of three operations, a root"),
    "igamma": _IGAMMA,
    "igammac": _IGAMMA,
    "igamma_grad_a": _IGAMMA.times(2, "igamma and its derivative term by term"),
    "random_gamma_grad": _IGAMMA.times(2, "igamma and its derivative term by term").plus(3, 1),
    "regularized_incomplete_beta": _LGAMMA.times(3).plus(
        8 * TERMS, 2 * TERMS, 3, f"Lentz's continued fraction, {TERMS} terms (assumed), prefactor by three lgamma"
    ),
}

# Words of 32 bits; a rotation is two shifts and an or. Per block, so per two or four words.
THREEFRY = Work(20 * 5 + 5 * 3 + 4, source="threefry2x32: 20 rounds of add, rotate, xor; a key added every fourth")
COUNTERS: dict[str, tuple[Work, int]] = {
    "threefry2x32": (THREEFRY, 2),
    "threefry4x32": (Work(20 * 10 + 5 * 5 + 8, source="threefry4x32: 20 rounds of two mixes"), 4),
    "philox2x32": (Work(10 * (15 + 1 + 2 + 1), source="philox2x32: 10 rounds of a wide product, two xors"), 2),
    "philox4x32": (Work(10 * (30 + 2 + 4 + 2), source="philox4x32: 10 rounds of two wide products, four xors"), 4),
}

# Complex numbers are two real words; these are real operations, from the definitions.
COMPLEX: dict[str, Work] = {
    "mul": Work(6, source="four products, two sums"),
    "square": Work(5, source="three products, a difference, a doubling"),
    "integer_pow": Work(6, source="a complex product"),
    "div": Work(9, 2, source="times the conjugate over the squared modulus"),
    "abs": Work(3, 0, 1, "root of the sum of squares"),
    "sign": Work(3, 2, 1, "over the modulus"),
    "conj": Work(1, source="one word negated, one kept"),
    "real": Work(1, source="a word copied"),
    "imag": Work(1, source="a word copied"),
    "complex": Work(2, source="two words copied"),
    "eq": Work(3, source="two comparisons, one and"),
    "ne": Work(3, source="two comparisons, one or"),
    "exp": Work(2, 0, 3, "exp(x) (cos y + i sin y)"),
    "log": Work(3, 1, 2, "log of the squared modulus, and the angle"),
    "sqrt": Work(8, 1, 2, "two real roots, signs selected"),
    "rsqrt": Work(17, 3, 2, "a complex root and a division"),
    "sin": Work(4, 1, 3, "sine, cosine and exp"),
    "cos": Work(4, 1, 3, "sine, cosine and exp"),
    "tanh": Work(8, 3, 3, "sine, cosine and exp, a division"),
    "pow": Work(11, 1, 5, "exp(y log x)"),
    "logistic": Work(11, 2, 3, "an exponential and a division"),
}


_ONE = {"vector": Work(1), "divide": Work(divide=1), "transcendental": Work(transcendental=1)}


def work(name: str, complexes: bool, default: str, cases: int = 2) -> Work:
    """Operations of one element of the primitive `name`; `default` is the kind of one that is not listed, `cases` how
    many a select_n selects from.

    >>> work("add", False, "vector").vector, work("mul", True, "vector").vector, work("erf_inv", False, "vector").flops
    (1, 6, 42)
    """
    if name == "select_n":
        return Work(max(1, cases - 1) * (2 if complexes else 1))
    if complexes:
        single = {"vector": Work(2), "divide": COMPLEX["div"], "transcendental": Work(8, 1, 3)}[default]
        return COMPLEX.get(name, single)
    return WORK.get(name) or _ONE[default]
