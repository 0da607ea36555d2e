"""A language model on the wafer: prefill and decode programs over the same weights, and text out of them."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wsc.errors import ArgumentError
from wsc.lowering.jaxapi import Traced
from wsc.program import Program
from wsc.runtime.executable import Executable
from wsc.runtime.sampling import Sampling
from wsc.runtime.serving import CONTEXTS, Capacity, FirstToken, capacity, check_users, first_token

SHORT_PROMPT = 32  # tokens; up to here a first prompt goes through decode, sooner done than compiling prefill too


class LanguageModel(Executable):
    """The decode program of a model, `(tokens [B, 1], cache) -> (logits, cache)`, with its `prefill` beside it.

    What is read off it (cost, report) is one decode step: one token for each user with the whole context in use.
    """

    def __init__(
        self,
        model: Any,
        program: Program,
        traced: Traced,
        prefill: Executable,
        order: str,
        context: int,
        batch: int,
        again: Callable[["LanguageModel", int], Callable[..., list[Program]]],
    ):
        """`again(self, context)` makes programs for another context on the same regions, given numbers of tokens."""
        super().__init__(program, traced, order, bound=(model,))
        self.model, self.prefill, self.context, self._users, self.again = model, prefill, context, batch, again

    @property
    def batch(self) -> int:
        return self._users

    @property
    def conditions(self) -> str:
        return f"{super().conditions}, prefill {self.chunk} at a time"

    @property
    def cache_bytes(self) -> int:
        leaves = jax.tree.leaves(self.model.abstract_cache(batch=self.batch, context=self.context))
        return sum(a.size * a.dtype.itemsize for a in leaves)

    @property
    def chunk(self) -> int:
        """Tokens of each user that the prefill program takes at a time."""
        return self.prefill._avals[len(self._bound)].shape[1]

    @property
    def initiation_interval(self) -> float:
        """Modelled seconds from one token to the next when tokens of several users follow one another through the
        stages: those of the busiest stage."""
        return float(self.telemetry.initiation_interval)

    @property
    def pipeline_users(self) -> int:
        """Users served at once, each at the speed of one alone: the stages full, `batch` users in each. Whether their
        caches fit too, `capacity` says."""
        return self.batch * self.telemetry.in_flight

    def user_speed(self, users: int) -> float:
        """Modelled tokens per second of each of so many users: flat until the stages are full, then one over the
        intervals of all. Raises ArgumentError for no users."""
        return self.telemetry.rate(-(-check_users(users) // self.batch))

    def throughput(self, users: int) -> float:
        """Modelled tokens per second of so many users together."""
        return users * self.user_speed(users)

    def first_token(self, prompt_tokens: int) -> FirstToken:
        """When a first token follows a prompt, each user's of so many tokens: see `FirstToken`. Raises ArgumentError
        for a prompt that is empty or longer than the context."""
        return first_token(self, prompt_tokens)

    def first_token_seconds(self, prompt_tokens: int) -> float:
        """Modelled seconds of the faster way to a first token."""
        return self.first_token(prompt_tokens).seconds

    def capacity(self, contexts: Sequence[int] = CONTEXTS) -> Capacity:
        """How many users have room, by the tokens of context of each, on the regions that are placed: see `Capacity`.
        Raises ArgumentError for anything but whole numbers of at least 1."""
        return capacity(self, contexts)

    @cached_property
    def decoder(self):
        """The decode step, jitted so that the cache is updated in place: (weights, tokens, cache leaves) -> leaves."""
        return _stepper(self)

    @cached_property
    def prefiller(self):
        """One prefill chunk, jitted likewise."""
        return _stepper(self.prefill)

    def generate(self, tokenizer: Any, prompt: str, max_new_tokens: int = 32, **sampling: Any) -> str:
        """The text that follows `prompt`. Greedy unless `temperature`, `top_k`, `top_p`, `seed` are given."""
        return "".join(self.stream(tokenizer, prompt, max_new_tokens, **sampling))

    def stream(self, tokenizer: Any, prompt: str, max_new_tokens: int = 32, **sampling: Any) -> Iterator[str]:
        """Pieces of the text that follows `prompt`, as tokens come."""
        if not (hasattr(tokenizer, "stream") and hasattr(tokenizer, "encode")):
            raise ArgumentError(
                f"tokenizer is {tokenizer!r}: give the one that wsc.models.load returns beside the model"
            )
        if not isinstance(prompt, str):
            raise ArgumentError(f"the prompt is a {type(prompt).__name__}: give a str, or ids to generate_ids")
        text = tokenizer.stream()
        ids = tokenizer.encode(prompt)
        for token in self.generate_ids(ids, max_new_tokens, stop=tokenizer.eos_ids, **sampling):
            piece = text.push(token)
            if piece:
                yield piece
        rest = text.flush()
        if rest:
            yield rest

    def generate_ids(
        self, prompt: list[int], max_new_tokens: int = 32, stop: frozenset[int] = frozenset(), **sampling: Any
    ) -> Iterator[int]:
        """Token ids that follow the ids of `prompt`, until `stop`, `max_new_tokens` or the end of the context.

        Raises ArgumentError for an empty prompt, one longer than the context, or ids outside the vocabulary.
        """
        chooser = self._chooser(sampling)
        prompt = self._check_prompt(prompt, max_new_tokens)
        weights = self._bound_leaves()
        logits, cache, length = self._read_prompt(prompt, weights)
        for step in range(max_new_tokens):
            token = chooser.choose(logits, step)
            if token in stop:
                return
            yield token
            if length >= self.context or step + 1 == max_new_tokens:
                return
            row, *cache = self.decoder(weights, jnp.full((self.batch, 1), token, jnp.int32), cache)
            logits, length = row[0, -1], length + 1

    def arguments_after(self, prompt: list[int]) -> tuple[jax.Array, Any]:
        """The arguments of the decode step that reads the last of the ids of `prompt`: what to call this program with,
        or to `simulate`. Raises ArgumentError as `generate_ids`."""
        *before, last = self._check_prompt(prompt, 1)
        cache = self.model.init_cache(batch=self.batch, context=self.context)
        if before:
            _, leaves, _ = self._read_prompt(before, self._bound_leaves())
            cache = jax.tree.unflatten(jax.tree.structure(cache), leaves)
        return jnp.full((self.batch, 1), last, jnp.int32), cache

    def _read_prompt(self, prompt: list[int], weights) -> tuple[jax.Array, list, int]:
        """Run the prompt through prefill chunks; what follows the prompt in the last chunk is overwritten later."""
        cache = self.model.init_cache(batch=self.batch, context=self.context)
        leaves, tree = jax.tree.flatten(cache)
        chunk = self.chunk
        short = len(prompt) <= SHORT_PROMPT and "prefiller" not in self.__dict__
        logits, done = None, 0
        while done < len(prompt):
            piece = prompt[done : done + chunk]
            if short or done + chunk > self.context:  # or no room for a padded chunk: token by token
                piece = piece[:1]
                row, *leaves = self.decoder(weights, jnp.full((self.batch, 1), piece[0], jnp.int32), leaves)
            else:
                tokens = np.zeros((self.batch, chunk), np.int32)
                tokens[:, : len(piece)] = piece
                row, *leaves = self.prefiller(weights, jnp.asarray(tokens), leaves)
            done += len(piece)
            logits = row[0, len(piece) - 1]
            leaves = jax.tree.leaves(_at_length(jax.tree.unflatten(tree, leaves), done))
        assert logits is not None
        return logits, leaves, done

    def _chooser(self, sampling: dict) -> Sampling:
        known = {"temperature", "top_k", "top_p", "seed"}
        if unknown := sampling.keys() - known:
            raise ArgumentError(f"unknown sampling option {sorted(unknown)}: there are {', '.join(sorted(known))}")
        return Sampling(**sampling)

    def _check_prompt(self, prompt: Any, max_new_tokens: int) -> list[int]:
        """The ids as a list, checked."""
        vocabulary = self.model.config.vocab_size
        ids = np.asarray(prompt)
        if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
            raise ArgumentError(f"the prompt must be a list of whole numbers, token ids; got {prompt!r:.80}")
        prompt = ids.tolist()
        if not prompt:
            raise ArgumentError("the prompt has no tokens: give it some text, or a beginning-of-sequence token")
        if len(prompt) > self.context:
            raise ArgumentError(
                f"the prompt has {len(prompt)} tokens and the program was compiled for a context of {self.context}: "
                f"shorten it, or compile with context={len(prompt) + max_new_tokens} or more"
            )
        if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise ArgumentError(f"max_new_tokens is {max_new_tokens!r}: it must be a whole number of at least 1")
        if bad := [t for t in prompt if not 0 <= t < vocabulary]:
            raise ArgumentError(f"token {bad[0]} is outside the model's vocabulary of {vocabulary}: wrong tokenizer?")
        return prompt


def _stepper(executable: Executable):
    """(weights, tokens, cache leaves) -> [logits, *cache leaves], the cache updated in place."""
    run = executable._function.run
    step = jax.jit(lambda tiles, weights, tokens, cache: run(tiles, *weights, tokens, *cache)[0], donate_argnums=3)
    return lambda weights, tokens, cache: step(executable.tiles, weights, tokens, cache)


def _at_length(cache: Any, length: int) -> Any:
    """The cache with `length` tokens in it."""
    return dataclasses.replace(cache, length=jnp.asarray(length, jnp.int32))
