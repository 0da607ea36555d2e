"""Speculative decoding: a small draft model proposes tokens, the target checks them all at once. As a plan, which says
what it would give on the wafer, and as decoding, which says how often the draft is right.

A round: the draft takes `tokens` decode steps, one after another, each on the token before; the target reads the token
before them and all of them, and says its own next token after each. Tokens are kept up to the first on which the two
differ, and the target's own comes after them. The last drafted token is read by the draft too, for its cache: on its
own PEs, while the target checks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from wsc.compile import compile as place
from wsc.compile import further_pass
from wsc.errors import ArgumentError, FitError
from wsc.machine.wafer import WSE3, Wafer
from wsc.runtime.generate import LanguageModel
from wsc.runtime.speculate import Generated, decode, streamed_seconds
from wsc.runtime.telemetry import Telemetry
from wsc.tables import Printed

ACCEPTANCES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
MOST = 8  # drafted tokens a round that a curve goes up to unless told
VERIFY = {"pass": "in one pass", "stream": "streamed through the stages"}


def speculative(
    target: Any,
    draft: Any,
    *,
    tokens: int = 4,
    verify: str = "stream",
    wafer: Wafer | None = None,
    wafers: int | None = None,
    context: int = 2048,
    order: str = "fabric",
) -> "Speculative":
    """Plan speculative decoding of the language model `target` by `draft`, `tokens` drafted a round, for one user.

    verify: how the target reads `tokens` + 1 tokens. "pass": all at once, by the prefill program. "stream": by the
    decode program, a token entering a stage as the one before it has left, since all of them are known.
    The other options are those of `wsc.compile`. The draft is placed on PEs that the target leaves free.

    Raises ArgumentError for models that are no language models of one vocabulary, or options out of range; FitError
    when the two do not fit.

    >>> import dataclasses, wsc
    >>> tiny = wsc.models.LlamaConfig(64, 32, 48, num_hidden_layers=2, num_attention_heads=4)
    >>> model, wafer = wsc.models.Llama.abstract(tiny), dataclasses.replace(wsc.WSE3, rows=24, columns=24)
    >>> plan = speculative(model, model, tokens=2, context=32, wafer=wafer)
    >>> bool(plan.tokens_per_second(0.9) > plan.tokens_per_second(0.5))
    True
    """
    sizes = [getattr(getattr(m, "config", None), "vocab_size", None) for m in (target, draft)]
    if None in sizes or not all(hasattr(m, "abstract_cache") for m in (target, draft)):
        raise ArgumentError("target and draft must be language models with a KV cache, such as wsc.models.Llama")
    if sizes[0] != sizes[1]:
        raise ArgumentError(
            f"the target has a vocabulary of {sizes[0]} and the draft one of {sizes[1]}: they must share one tokenizer"
        )
    if verify not in VERIFY:
        raise ArgumentError(f"verify is {verify!r}: it must be one of {', '.join(VERIFY)}")
    _check_tokens(tokens, context)
    options: dict[str, Any] = {"wafer": wafer or WSE3, "wafers": wafers, "context": context, "order": order}
    chunk = tokens + 1 if verify == "pass" else None
    large = place(target, prefill_chunk=chunk, **options)
    small = place(draft, beside=large, **options)
    assert isinstance(large, LanguageModel) and isinstance(small, LanguageModel)
    return Speculative(large, small, tokens, verify)


def expected_tokens(acceptance: Any, tokens: int) -> np.ndarray:
    """Tokens that a round yields on average, (1 - a^(k+1)) / (1 - a) for k = `tokens`, when each is accepted with
    probability `acceptance` a (any shape), independently: Leviathan et al. 2023, "Fast Inference from Transformers via
    Speculative Decoding", equation 1. Raises ArgumentError outside [0, 1].

    >>> expected_tokens([0.0, 0.5, 1.0], 2)
    array([1.  , 1.75, 3.  ])
    """
    try:
        a = np.asarray(acceptance, np.float64)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"acceptance is {acceptance!r}: it must be a number, or several") from error
    if not ((a >= 0) & (a <= 1)).all():
        raise ArgumentError(f"acceptance is {acceptance!r}: it must lie in [0, 1], the share of tokens accepted")
    return (a[..., None] ** np.arange(tokens + 1)).sum(-1)  # the series of that quotient: 1 is no special case


@dataclass(frozen=True, repr=False)
class Curve(Printed):
    """Modelled tokens per second by drafted tokens a round and by acceptance, beside decoding without a draft."""

    tokens: tuple[int, ...]  # [K]
    acceptances: tuple[float, ...]  # [A]
    verify_seconds: tuple[float, ...]  # [K], the target's check of one token more
    round_seconds: tuple[float, ...]  # [K]
    plain: float  # tokens per second of the target alone
    conditions: str

    @property
    def tokens_per_second(self) -> np.ndarray:
        """[K, A]."""
        rows = zip(self.tokens, self.round_seconds)
        return np.array([expected_tokens(self.acceptances, k) / seconds for k, seconds in rows])

    @property
    def best(self) -> np.ndarray:
        """[A] drafted tokens a round with the most tokens per second; 0 where the target alone is faster."""
        rates = self.tokens_per_second
        return np.where(rates.max(0) > self.plain, np.array(self.tokens)[rates.argmax(0)], 0)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {
            "tokens": list(self.tokens),
            "acceptances": list(self.acceptances),
            "verify_seconds": list(self.verify_seconds),
            "round_seconds": list(self.round_seconds),
            "tokens_per_second": self.tokens_per_second.tolist(),
            "plain_tokens_per_second": self.plain,
            "best_tokens": self.best.tolist(),
            "conditions": self.conditions,
        }

    def __rich__(self) -> Table:
        table = Table(title=f"Tokens per second by acceptance, modelled: {self.conditions}")
        for name in ("drafted a round", "check, us", "round, us", *(f"{a:g}" for a in self.acceptances)):
            table.add_column(name, justify="right")
        table.add_row("none", "", "", *[f"{self.plain:,.0f}"] * len(self.acceptances), end_section=True)
        for k, check_s, round_s, rates in zip(
            self.tokens, self.verify_seconds, self.round_seconds, self.tokens_per_second, strict=True
        ):
            cells = (f"{rate:,.0f}{'*' * bool(k == best)}" for rate, best in zip(rates, self.best))
            table.add_row(f"{k}", f"{1e6 * check_s:,.1f}", f"{1e6 * round_s:,.1f}", *cells)
        table.caption = "* most of its column"
        return table


@dataclass(frozen=True, repr=False)
class Speculative(Printed):
    """A target and a draft placed on their own PEs, with the modelled time of a round of `tokens` drafted tokens.

    `generate` decodes with both, if they have weights, and measures the acceptance.
    """

    target: LanguageModel
    draft: LanguageModel
    tokens: int
    verify: str

    @property
    def conditions(self) -> str:
        """What the figures hold for."""
        wafer, programs = self.target.program.wafer, (self.target.program, self.draft.program)
        count = max(p.wafers for p in programs)
        dtypes = " and ".join(dict.fromkeys(p.conditions.rsplit(", ", 1)[1] for p in programs))
        hardware = f"{count} x {wafer.name} at {wafer.clock_hz / 1e9:.3f} GHz"
        return f"{hardware}, checked {VERIFY[self.verify]}, batch 1, context {self.target.context}, {dtypes}"

    @property
    def plain_tokens_per_second(self) -> float:
        """Of the target alone, a decode step a token."""
        return 1 / float(self.target.telemetry.seconds)

    @cached_property
    def _checks(self) -> dict[int, float]:
        return {}

    def verify_seconds(self, tokens: int | None = None) -> float:
        """Modelled time in which the target, where it is placed, reads `tokens` + 1 tokens; None is the plan's own.

        Fewer than the plan's own for which that place has no pass are read in the next larger one, padded. Raises
        FitError when more do not fit there.
        """
        k = self.tokens if tokens is None else tokens
        _check_tokens(k, self.target.context)
        if k not in self._checks:
            self._checks[k] = float(self._check_seconds(k))
        return self._checks[k]

    def _check_seconds(self, k: int) -> Any:
        if self.verify == "stream":
            return streamed_seconds(self.target, k + 1)
        if k == self.tokens:
            return self.target.prefill.telemetry.seconds
        try:
            return Telemetry(further_pass(self.target, k + 1)).seconds
        except FitError:
            if k > self.tokens:
                raise
        return self.verify_seconds(k + 1)

    def round_seconds(self, tokens: int | None = None) -> float:
        """Modelled time of a round: the draft's steps, then the check, beside which the draft reads the last token."""
        k, step = self.tokens if tokens is None else tokens, float(self.draft.telemetry.seconds)
        return k * step + max(self.verify_seconds(k), step)

    def tokens_per_second(self, acceptance: Any) -> np.ndarray:
        """Modelled, for acceptances of any shape; see `expected_tokens`."""
        return expected_tokens(acceptance, self.tokens) / self.round_seconds()

    @property
    def break_even(self) -> float | None:
        """The acceptance at which this is as fast as the target alone; None when it never is."""
        need = self.plain_tokens_per_second * self.round_seconds()
        if need > self.tokens + 1:
            return None
        low, high = 0.0, 1.0
        for _ in range(50):  # halving: the expected tokens grow with the acceptance
            middle = (low + high) / 2
            low, high = (middle, high) if expected_tokens(middle, self.tokens) < need else (low, middle)
        return high

    def curve(self, acceptances: Sequence[float] = ACCEPTANCES, tokens: Sequence[int] | None = None) -> Curve:
        """Tokens per second for several acceptances and several drafted tokens a round, all where this plan is placed.

        `tokens` None is 1 to 8 (or the plan's own, if more), as far as their passes fit beside the weights. Raises
        ArgumentError for empty or wrong values, FitError for `tokens` that do not fit.
        """
        expected_tokens(acceptances, 1)
        wanted = tuple(float(a) for a in np.ravel(np.asarray(acceptances, np.float64)))
        if not wanted or not (rows := self._rows(tokens)):
            raise ArgumentError("a curve needs one acceptance and one number of drafted tokens at least")
        checks, rounds = (tuple(map(of, rows)) for of in (self.verify_seconds, self.round_seconds))
        return Curve(rows, wanted, checks, rounds, self.plain_tokens_per_second, self.conditions)

    def _rows(self, tokens: Sequence[int] | None) -> tuple[int, ...]:
        if tokens is not None:
            return tuple(tokens)
        most = min(max(MOST, self.tokens), self.target.context - 1)
        rows = tuple(range(1, self.tokens + 1))
        for k in range(self.tokens + 1, most + 1):
            try:
                self.verify_seconds(k)
            except FitError:
                break
            rows += (k,)
        return rows

    def best(self, acceptance: Any, tokens: Sequence[int] | None = None) -> Any:
        """Drafted tokens a round, of those of `curve`, with the most tokens per second; 0: the target alone is faster.
        An int for one acceptance, an array [A] for several."""
        found = self.curve([*np.atleast_1d(acceptance)], tokens).best
        return found if np.ndim(acceptance) else int(found[0])

    def generate(self, prompt: Sequence[int], new_tokens: int = 32, stop: frozenset[int] = frozenset()) -> Generated:
        """Decode greedily: the ids that `target.generate_ids(prompt, new_tokens, stop)` gives, and the counts of
        tokens drafted and accepted. Equal but for logits so close that reading tokens together rounds them apart;
        streamed checks are the very decode steps. Raises what `generate_ids` does."""
        return decode(self.target, self.draft, prompt, self.tokens, new_tokens, stop, self.verify == "pass")

    def as_dict(self) -> dict[str, Any]:
        """The modelled figures as plain values, for JSON."""
        return {
            "tokens": self.tokens,
            "draft_seconds": float(self.draft.telemetry.seconds),
            "target_seconds": float(self.target.telemetry.seconds),
            "verify_seconds": self.verify_seconds(),
            "round_seconds": self.round_seconds(),
            "plain_tokens_per_second": self.plain_tokens_per_second,
            "break_even_acceptance": self.break_even,
            "conditions": self.conditions,
        }

    def __rich__(self) -> Group:
        times = Table(title=f"Modelled: {self.conditions}")
        for name, justify in (("figure", "left"), ("value", "right"), ("unit", "left")):
            times.add_column(name, justify=justify)  # type: ignore[arg-type]
        k, even = self.tokens, self.break_even
        rows = (
            ("a decode step of the draft", 1e6 * float(self.draft.telemetry.seconds), "us"),
            (f"a check of {k} drafted tokens by the target", 1e6 * self.verify_seconds(), "us"),
            (f"a round: {k} steps of the draft and the check", 1e6 * self.round_seconds(), "us"),
            ("a decode step of the target alone", 1e6 * float(self.target.telemetry.seconds), "us"),
            ("tokens per second of the target alone", self.plain_tokens_per_second, "1/s"),
        )
        for name, value, unit in rows:
            times.add_row(name, f"{value:,.1f}", unit)
        times.add_row("acceptance at which both are as fast", "none" if even is None else f"{even:.3f}", "of tokens")
        rates = Table(title=f"With {k} drafted tokens a round, modelled: tokens of one user")
        for name in ("acceptance", "a round", "per second", "times the target alone"):
            rates.add_column(name, justify="right")
        for a, rate in zip(ACCEPTANCES, self.tokens_per_second(ACCEPTANCES)):
            cells = (f"{expected_tokens(a, k):.2f}", f"{rate:,.0f}", f"{rate / self.plain_tokens_per_second:.2f}")
            rates.add_row(f"{a:g}", *cells)
        return Group(times, rates)


def _check_tokens(tokens: Any, context: int) -> None:
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
        raise ArgumentError(f"tokens is {tokens!r}: it must be a whole number of at least 1")
    if tokens >= context:
        raise ArgumentError(f"{tokens} drafted tokens and one more do not fit a context of {context}: draft fewer")
