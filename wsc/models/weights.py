"""From named tensors in a file to a Llama: every format gives `Tensor`s, one function checks and places them.

Names here are paths in the module with dots: `layers.0.attn.q.kernel`. Shapes are the module's, kernels `[in, out]`.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wsc.errors import CheckpointError
from wsc.models.config import LlamaConfig
from wsc.models.llama import Llama


class Tensor(NamedTuple):
    """A weight that is still in its file."""

    name: str  # what the file calls it, for messages
    shape: tuple[int, ...]  # in the file
    read: Callable[[], np.ndarray]  # the values, in the shape above


def head_rows_to_halves(w: np.ndarray, head_dim: int) -> np.ndarray:
    """Reorder the rows of a q or k matrix `[heads * h, d]` from interleaved rotary pairs to rotate-half.

    >>> head_rows_to_halves(np.arange(4)[:, None], 4).ravel()
    array([0, 2, 1, 3])
    """
    rows, d = w.shape
    return w.reshape(rows // head_dim, head_dim // 2, 2, d).transpose(0, 2, 1, 3).reshape(rows, d)


def build(
    config: LlamaConfig, tensors: Mapping[str, Tensor], path: Path, dtype: Any = jnp.float32, progress: bool = True
) -> Llama:
    """A Llama of `config` whose weights are `tensors`, one read at a time; 2-D ones other than the embedding turned.

    Raises CheckpointError that names up to five tensors which are missing, unexpected, misshapen or not finite.
    """
    if config.num_hidden_layers > len(tensors):  # before a hostile config makes a billion layers
        _refuse(path, [f"{config.num_hidden_layers} layers, but {len(tensors)} tensors"], "fetch both again")
    paths, tree = jax.tree_util.tree_flatten_with_path(Llama.abstract(config, dtype))
    wanted = {name_of(key): leaf for key, leaf in paths}
    turned = {name: name.endswith("kernel") for name in wanted}
    missing = [f"{n} is missing" for n in wanted if n not in tensors]
    extra = [f"{t.name} is unexpected" for n, t in tensors.items() if n not in wanted]
    shapes = []
    for name, tensor in tensors.items():
        want = wanted[name].shape if name in wanted else tensor.shape
        want = want[::-1] if turned.get(name) else want
        if want != tensor.shape:
            shapes.append(f"{tensor.name} has shape {tensor.shape}, expected {want}")
    _refuse(path, missing + extra + shapes, "the config and the weights are not of one model; fetch both again")

    leaves = []
    for name, leaf in _bar(wanted.items(), len(wanted), path.name, progress):
        value = tensors[name].read()
        if value.dtype.kind != "f" and value.dtype != jnp.bfloat16:
            _refuse(path, [f"{tensors[name].name} holds {value.dtype}"], "use f32, f16 or bf16 weights")
        if not np.isfinite(value.min(initial=0) + value.max(initial=0)):  # one pass each, and no array of flags
            _refuse(path, [f"{tensors[name].name} holds NaN or infinity"], "the file is damaged; fetch it again")
        # numpy's own copy: the file may go away, and jnp.asarray need not copy again.
        leaves.append(jnp.asarray(np.array(value.T if turned[name] else value, leaf.dtype, order="C")))
    return jax.tree_util.tree_unflatten(tree, leaves)


def _refuse(path: Path, faults: list[str], advice: str) -> None:
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(f"{path}: {'; '.join(faults[:5])}{more}; {advice}")


def name_of(key: Any) -> str:
    """`.layers[0].attn.q.kernel.value` as `layers.0.attn.q.kernel`."""
    parts = [str(getattr(k, "name", getattr(k, "key", getattr(k, "idx", "")))) for k in key]
    return ".".join(parts[:-1] if parts[-1] == "value" else parts)


def _bar(items: Any, total: int, what: str, progress: bool) -> Iterator[Any]:
    """`items`, with a progress bar on a terminal from the second second on."""
    if not (progress and sys.stderr.isatty()):
        yield from items
        return
    from rich.console import Console
    from rich.progress import Progress

    start, bar = time.monotonic(), Progress(console=Console(stderr=True), transient=True)
    task = bar.add_task(f"loading {what}", total=total)
    with contextlib.ExitStack() as stack:
        for item in items:
            yield item
            bar.advance(task)
            if not bar.live.is_started and time.monotonic() - start > 1:
                stack.enter_context(bar)
