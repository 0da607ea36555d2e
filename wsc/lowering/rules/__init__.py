"""One file per family of primitives; importing this package registers every rule."""

from wsc.lowering.rules import conv, dot, elementwise, indexing, linalg, ragged, random, reduce, shape, window  # noqa: F401
from wsc.lowering.rules.registry import RULES, Lowered, Op, Operand, Where, rule

__all__ = ["RULES", "Lowered", "Op", "Operand", "Where", "rule"]
