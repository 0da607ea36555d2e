"""Models that several tests share."""

import warnings
from pathlib import Path

import jax
import pytest
from flax import nnx

from wsc.errors import DownloadError
from wsc.models import Llama, LlamaConfig, Tokenizer, load

collect_ignore = ["make_golden.py"]  # a script that needs torch

STORIES = Path(__file__).parents[2].parent / "shared" / "data" / "stories260K"


@pytest.fixture(scope="session")
def smollm2() -> tuple[Llama, Tokenizer]:
    """SmolLM2-135M-Instruct in float32 and its tokenizer, fetched the first time."""
    try:
        return load("smollm2-135m", progress=False)
    except DownloadError as e:
        pytest.skip(str(e))


@pytest.fixture(scope="session")
def stories() -> Path:
    """The folder of the stories260K checkpoint."""
    if not STORIES.is_dir():
        pytest.skip(f"no {STORIES}: the shared data is not here")
    return STORIES


@pytest.fixture(scope="session")
def tiny_config() -> LlamaConfig:
    """Grouped queries, Llama 3 frequencies that fall in all three bands, an own head, a head width of its own."""
    scaling = {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    return LlamaConfig.from_json(
        {
            "vocab_size": 300,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "rope_theta": 1000.0,
            "rope_scaling": scaling,
            "max_position_embeddings": 256,
        }
    )


@pytest.fixture(scope="session")
def tiny(tiny_config: LlamaConfig) -> Llama:
    """Random weights, norms too: ones would hide a norm that is left out."""
    model = Llama(tiny_config, rngs=nnx.Rngs(0))
    leaves, tree = jax.tree.flatten(model)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys)]
    return jax.tree.unflatten(tree, noise)


@pytest.fixture(scope="session", autouse=True)
def _gguf_import() -> None:
    with warnings.catch_warnings():  # its dependencies warn when first imported
        warnings.simplefilter("ignore")
        import gguf  # noqa: F401
