"""Decoding with a draft: a small model proposes tokens, the target checks them; the ids are the target's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from wsc.errors import UnsupportedError
from wsc.runtime.generate import LanguageModel, _at_length
from wsc.runtime.serving import following
from wsc.tables import Printed


@dataclass(frozen=True, repr=False)
class Generated(Printed):
    """Token ids that follow a prompt, and the counts of how they came about."""

    ids: tuple[int, ...]
    rounds: int  # a check of drafted tokens each
    drafted: int  # tokens that the draft proposed
    accepted: int  # those of them that were the target's own
    refused: int  # rounds that ended at a token that was not; the drafted ones after it were not judged
    steps: int  # tokens for which the target took a decode step of its own: the last of the request or of the context

    @property
    def acceptance(self) -> float | None:
        """Measured share of accepted tokens among those judged, the most likely rate for `expected_tokens`; None if
        no token was drafted. The share among all drafted ones, `accepted / drafted`, is lower: one refusal wastes all
        that follow it."""
        judged = self.accepted + self.refused
        return self.accepted / judged if judged else None

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {
            "ids": list(self.ids),
            "rounds": self.rounds,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "refused": self.refused,
            "steps": self.steps,
            "acceptance": self.acceptance,
        }

    def __rich__(self) -> Table:
        table = Table("measured on this computer", "count", title="Decoding with a draft")
        rows = {
            "tokens": len(self.ids),
            "rounds: checks of drafted tokens by the target": self.rounds,
            "tokens drafted": self.drafted,
            "accepted": self.accepted,
            "refused; what was drafted after them was not judged": self.refused,
            "decode steps of the target alone": self.steps,
            "acceptance: accepted of those judged": "-" if self.acceptance is None else f"{self.acceptance:.3f}",
        }
        table.columns[1].justify = "right"
        for name, value in rows.items():
            table.add_row(name, str(value))
        return table


def decode(
    target: LanguageModel,
    draft: LanguageModel,
    prompt: Sequence[int],
    tokens: int,
    new_tokens: int,
    stop: frozenset[int],
    at_once: bool,
) -> Generated:
    """Greedy decoding in rounds of at most `tokens` drafted ones, until `stop`, `new_tokens` or the end of the context.

    `at_once`: the target checks with its prefill program, of `tokens` + 1; otherwise with decode steps.
    """
    text = target._check_prompt(prompt, new_tokens)
    begin, large = len(text), _Reader(target, text)
    small = _Reader(draft, text)
    text = [*text, large.next]
    rounds = drafted = accepted = refused = steps = 0
    # A cache has all of the text but its last token; the draft's may lack one more, the last it proposed.
    while len(text) - begin < new_tokens and large.length < target.context and text[-1] not in stop:
        room = target.context - large.length - 1
        count = min(tokens, room, new_tokens - (len(text) - begin) - 1)
        if count < 1 or (at_once and room < tokens):  # a pass writes tokens + 1 entries, all within the cache
            text.append(large.step(text[-1]))
            steps += 1
            continue
        proposed = [*text]
        while len(proposed) < len(text) + count:
            token = small.step(proposed[small.length])
            proposed += [token] if small.length == len(proposed) else []
        proposed = proposed[len(text) :]
        read = [text[-1], *proposed]
        own = large.check(read + [0] * (tokens - count)) if at_once else [large.step(t) for t in read]
        agreed = next((i for i in range(count) if own[i] != proposed[i]), count)
        more = own[: agreed + 1]
        if ends := [i for i, t in enumerate(more) if t in stop]:
            more = more[: ends[0] + 1]
        text += more
        rounds, drafted = rounds + 1, drafted + count
        accepted, refused = accepted + agreed, refused + (agreed < count)
        large.keep(len(text) - 1)
        small.keep(min(small.length, len(text) - 1))
    ids = text[begin:]
    return Generated(tuple(ids[:-1] if ids[-1] in stop else ids), rounds, drafted, accepted, refused, steps)


def streamed_seconds(target: LanguageModel, tokens: int) -> float:
    """Modelled time of `tokens` decode steps one behind the other: see `serving.following`."""
    try:
        return following(target.telemetry, tokens)
    except UnsupportedError as error:
        raise UnsupportedError(f"{error}; or check drafted tokens in one pass, verify='pass'") from error


class _Reader:
    """A program with its weights and a cache: reads tokens, says its next one after each, forgets the last."""

    def __init__(self, exe: LanguageModel, prompt: list[int]):
        self.exe, self.weights = exe, exe._bound_leaves()
        logits, self.cache, self.length = exe._read_prompt(prompt, self.weights)
        self.tree = jax.tree.structure(exe.model.abstract_cache(batch=1, context=exe.context))
        self.next = int(jnp.argmax(logits))

    def step(self, token: int) -> int:
        """Its choice after one more token, by the decode program."""
        logits, *self.cache = self.exe.decoder(self.weights, jnp.full((1, 1), token, jnp.int32), self.cache)
        self.length += 1
        return int(jnp.argmax(logits[0, -1]))

    def check(self, tokens: list[int]) -> list[int]:
        """Its choice after each of several more tokens, by one pass of the prefill program, which is of so many."""
        logits, *self.cache = self.exe.prefiller(self.weights, jnp.asarray([tokens], jnp.int32), self.cache)
        self.length += len(tokens)
        return np.asarray(jnp.argmax(logits[0], axis=-1)).tolist()

    def keep(self, length: int) -> None:
        """Forget all after the first `length` tokens: entries past the length are never read, and written again."""
        if length != self.length:
            self.cache = jax.tree.leaves(_at_length(jax.tree.unflatten(self.tree, self.cache), length))
            self.length = length
