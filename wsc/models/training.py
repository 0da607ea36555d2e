"""Training a Llama on bytes: the recipe, the loss, one step, and `Trainer`, which takes the steps.

Axes: B texts of a batch, T tokens that are read of each, N tokens of a text. A batch is int32 [B, T + 1]: token t + 1
is what is to be said after token t. Everything is float32, and nothing depends on what came before but the model and
the optimizer: the batch of a step is drawn from the seed and the number of the step.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from wsc.errors import ArgumentError, CheckpointError, ConfigError
from wsc.models.bytes import END, VOCABULARY
from wsc.models.config import LlamaConfig
from wsc.models.llama import Array, Llama
from wsc.models.rope import positive

# AdamW, clipping and the last rate are those that LLaMA was trained with (Touvron et al. 2023, section 2.3).
BETAS, WEIGHT_DECAY, CLIP, LAST = (0.9, 0.95), 0.1, 1.0, 0.1
WARMUP = 0.1  # share of the schedule in which the learning rate rises
HELD_OUT = 0.1  # share of the text, its end, that is not trained on


Compiled = Callable[..., Callable[[Llama, nnx.Optimizer, Array], Array]]


@dataclass(frozen=True)
class Recipe:
    """All that the numbers of a training depend on, beside its text. ConfigError for a value that none can have.

    >>> Recipe(hidden=64, layers=2).config.parameters
    143680
    """

    layers: int = 4
    hidden: int = 128
    heads: int = 4
    sequence: int = 64  # tokens read at a time, T
    batch: int = 4  # texts a step, B; so many that what a step keeps for its way back fits beside the weights
    learning_rate: float = 3e-3  # at its highest
    schedule: int = 200  # steps until the learning rate has fallen to a tenth, where it stays
    seed: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "seed":
                object.__setattr__(self, field.name, positive("recipe", field.name, value, type(field.default)))
            elif not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32:
                raise ConfigError(f"recipe.seed must be a whole number from 0 to 2**32 - 1, got {value!r}")
        _ = self.config  # its own checks

    @property
    def config(self) -> LlamaConfig:
        """The Llama of this recipe."""
        return LlamaConfig(
            VOCABULARY,
            self.hidden,
            3 * self.hidden,
            self.layers,
            self.heads,
            max_position_embeddings=self.sequence,
            bos_token_id=None,
            eos_token_id=END,
        )

    @property
    def tokens(self) -> int:
        """Tokens that one step learns from."""
        return self.batch * self.sequence

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Recipe":
        """The recipe of a mapping as `dataclasses.asdict` gives it; ConfigError for one with other fields."""
        names = [f.name for f in dataclasses.fields(cls)]
        if sorted(values) != sorted(names):
            raise ConfigError(f"a recipe has {', '.join(names)}, got {', '.join(map(str, values))}; correct it")
        return cls(**values)


def nats(model: Llama, batch: Array) -> Array:
    """What every next token costs the model: -ln of its probability, float32 [B, T]."""
    logits, _ = model(batch[:, :-1])
    logits, said = logits.astype(jnp.float32), batch[:, 1:, None]
    # Compared with every token of the vocabulary instead of indexed: on a wafer a row of logits lies over many PEs.
    chosen = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == said
    return jax.nn.logsumexp(logits, axis=-1) - jnp.where(chosen, logits, 0.0).sum(axis=-1)


def mean_loss(model: Llama, batch: Array) -> Array:
    """Cross entropy of the next token, in nats, float32 scalar."""
    return nats(model, batch).mean()


def train_step(model: Llama, optimizer: nnx.Optimizer, batch: Array) -> Array:
    """One step: the loss of `batch` before it, a scalar; model and optimizer are updated in place."""
    loss, gradients = nnx.value_and_grad(mean_loss)(model, batch)
    optimizer.update(model, gradients)
    return loss


jitted_step = nnx.jit(train_step)


def new_optimizer(model: Llama, recipe: Recipe) -> nnx.Optimizer:
    """AdamW with clipped gradients; its learning rate rises in a line, then falls along a cosine to a tenth.

    Raises CheckpointError where optax is missing.
    """
    return nnx.Optimizer(model, _updates(recipe.learning_rate, recipe.schedule), wrt=nnx.Param)


@functools.lru_cache(maxsize=16)  # the same object for the same rates: a step that was compiled is not compiled again
def _updates(peak: float, schedule: int) -> Any:
    try:
        import optax
    except ImportError as e:
        raise CheckpointError("training needs the optax package; run: pip install 'wsc[train]'") from e
    warmup = math.ceil(WARMUP * schedule)
    rate = optax.warmup_cosine_decay_schedule(LAST * peak, peak, warmup, max(schedule, warmup + 1), LAST * peak)
    adam = optax.adamw(rate, b1=BETAS[0], b2=BETAS[1], weight_decay=WEIGHT_DECAY)
    return optax.chain(optax.clip_by_global_norm(CLIP), adam)


def new_state(recipe: Recipe) -> tuple[Llama, nnx.Optimizer]:
    """A model of random weights, drawn from the seed, and its optimizer."""
    model = Llama(recipe.config, rngs=nnx.Rngs(recipe.seed))
    return model, new_optimizer(model, recipe)


@dataclass(frozen=True, eq=False)
class Text:
    """Tokens to learn and, the last tenth, tokens to be examined on. ArgumentError when they are too few."""

    tokens: np.ndarray  # int32 [N]

    def __post_init__(self) -> None:
        if self.tokens.ndim != 1 or self.tokens.dtype != np.int32:
            raise ArgumentError(f"a text is int32 [N] tokens, got {self.tokens.dtype}{list(self.tokens.shape)}")

    @property
    def split(self) -> int:
        """Where the tokens begin that are not trained on."""
        return len(self.tokens) - math.ceil(HELD_OUT * len(self.tokens))

    @property
    def digest(self) -> str:
        """What tells this text from others: SHA-256 of its tokens."""
        return hashlib.sha256(self.tokens.astype("<i4").tobytes()).hexdigest()

    def check(self, sequence: int) -> None:
        if len(self.tokens) - self.split < sequence + 1:
            raise ArgumentError(
                f"the text has {len(self.tokens)} tokens: its last tenth must hold a sequence of {sequence} and one "
                "more, so give a longer text or a shorter sequence"
            )

    def batch(self, recipe: Recipe, step: int) -> np.ndarray:
        """The tokens int32 [B, T + 1] of a step, from places drawn evenly among those that are trained on."""
        draw = np.random.default_rng([recipe.seed, step])
        starts = draw.integers(0, self.split - recipe.sequence, recipe.batch)
        return self.tokens[starts[:, None] + np.arange(recipe.sequence + 1)]

    def held_out(self, sequence: int) -> np.ndarray:
        """The tokens that are not trained on, int32 [windows, T + 1], one window after the other."""
        rest = self.tokens[self.split :]
        starts = np.arange((len(rest) - 1) // sequence) * sequence
        return rest[starts[:, None] + np.arange(sequence + 1)]


class Trainer:
    """A model, its optimizer, and the steps they take through a text.

    `compiled(train_step, model, optimizer, batch)` makes the function that takes a step; `nnx.jit` unless told.

    >>> text = Text(np.arange(4000, dtype=np.int32) % 256)
    >>> trainer = Trainer(Recipe(layers=1, hidden=8, heads=1, sequence=16, batch=2), text)
    >>> len(list(trainer.run(until=2))), trainer.step
    (2, 2)
    """

    def __init__(
        self,
        recipe: Recipe,
        text: Text,
        state: tuple[Llama, nnx.Optimizer] | None = None,
        compiled: Compiled | None = None,
    ):
        text.check(recipe.sequence)
        self.recipe, self.text = recipe, text
        self.model, self.optimizer = state or new_state(recipe)
        batch = jnp.asarray(text.batch(recipe, 0))
        self._train_step = compiled(train_step, self.model, self.optimizer, batch) if compiled else jitted_step

    @property
    def step(self) -> int:
        """Steps that were taken."""
        return int(self.optimizer.step[...])

    def run(self, until: int) -> Iterator[float]:
        """Take the steps up to number `until`, and give the loss of each, in nats a token.

        Raises ArgumentError when a loss is no number any more.
        """
        for step in range(self.step, until):
            batch = jnp.asarray(self.text.batch(self.recipe, step))
            loss = float(self._train_step(self.model, self.optimizer, batch))
            if not math.isfinite(loss):
                raise ArgumentError(f"the loss of step {step + 1} is {loss}; train with a lower learning rate")
            yield loss

    def examine(self) -> float:
        """Bits that a byte of the text that was not trained on costs the model, each window read from its beginning."""
        windows, size = self.text.held_out(self.recipe.sequence), self.recipe.batch
        total = sum(float(_nats_sum(self.model, windows[i : i + size])) for i in range(0, len(windows), size))
        return total / math.log(2) / int((windows[:, 1:] != END).sum())


@jax.jit
def _nats_sum(model: Llama, batch: Array) -> Array:
    return nats(model, batch).sum()
