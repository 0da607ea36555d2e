"""Choosing the next token from logits."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from wsc.errors import ArgumentError


@dataclass(frozen=True)
class Sampling:
    """Temperature 0 is greedy; `top_k` 0 and `top_p` 1 keep every token.

    >>> Sampling(temperature=0.7, top_p=1.5)
    Traceback (most recent call last):
    ...
    wsc.errors.ArgumentError: top_p is 1.5: it must be above 0 and at most 1
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        for name in ("temperature", "top_p"):
            if not isinstance(getattr(self, name), int | float):
                raise ArgumentError(f"{name} is {getattr(self, name)!r}: it must be a number")
        for name in ("top_k", "seed"):
            if not isinstance(getattr(self, name), int) or not -(2**63) <= getattr(self, name) < 2**63:
                raise ArgumentError(f"{name} is {getattr(self, name)!r}: it must be a whole number of 64 bits")
        if not self.temperature >= 0 or self.temperature == float("inf"):
            raise ArgumentError(f"temperature is {self.temperature}: it must be 0 (greedy) or above, and finite")
        if self.top_k < 0:
            raise ArgumentError(f"top_k is {self.top_k}: it must be 0 (all tokens) or above")
        if not 0 < self.top_p <= 1:
            raise ArgumentError(f"top_p is {self.top_p}: it must be above 0 and at most 1")

    def choose(self, logits: jax.Array, step: int) -> int:
        """The next token from logits [V]; the same seed and step choose the same token."""
        if self.temperature < 1e-6:  # float32 logits over less overflow
            return int(jnp.argmax(logits))
        key = jax.random.fold_in(jax.random.key(self.seed), step)
        return int(_sample(logits, key, self.temperature, self.top_p, top_k=min(self.top_k, logits.shape[-1])))


@partial(jax.jit, static_argnames="top_k")
def _sample(logits, key, temperature, top_p, *, top_k):
    logits = logits.astype(jnp.float32) / temperature
    if top_k:
        smallest = jax.lax.top_k(logits, top_k)[0][-1]
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    order = jnp.argsort(-logits)
    probabilities = jax.nn.softmax(logits[order])
    before = jnp.cumsum(probabilities) - probabilities  # the most likely token always stays
    ranked = jnp.where(before < top_p, logits[order], -jnp.inf)
    return order[jax.random.categorical(key, ranked)]
