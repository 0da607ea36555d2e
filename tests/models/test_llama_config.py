import json
import math
from pathlib import Path

import pytest

from wsc.errors import ConfigError
from wsc.models import CONFIGS, LlamaConfig
from wsc.models.config import config
from wsc.models.rope import RopeScaling

PUBLISHED = {  # of the model cards and the safetensors of each
    "smollm2-135m": 134_515_008,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3-8b": 8_030_261_248,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "codellama-34b": 33_743_970_304,
}
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_published(name: str) -> None:
    assert config(name).parameters == PUBLISHED[name]


def test_a_transformers_4_config() -> None:
    got = LlamaConfig.from_json(
        {**SIZES, "rope_theta": 5e5, "rope_scaling": LLAMA3, "torch_dtype": "bfloat16", "eos_token_id": [2, 3]}
    )
    assert (got.num_key_value_heads, got.head_dim, got.rope_theta, got.dtype) == (4, 8, 5e5, "bfloat16")
    assert got.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
    assert got.eos_token_id == (2, 3)


def test_a_transformers_5_config_is_the_same() -> None:
    old = LlamaConfig.from_json({**SIZES, "rope_theta": 5e5, "rope_scaling": LLAMA3, "torch_dtype": "bfloat16"})
    new = LlamaConfig.from_json({**SIZES, "rope_parameters": {**LLAMA3, "rope_theta": 5e5}, "dtype": "bfloat16"})
    assert old == new and hash(old) == hash(new)


def test_older_spellings() -> None:
    assert LlamaConfig.from_json({**SIZES, "rope_scaling": {"type": "linear", "factor": 2}}).rope_scaling is not None
    assert LlamaConfig.from_json({**SIZES, "rope_scaling": {"rope_type": "default"}}).rope_scaling is None
    assert LlamaConfig.from_json({**SIZES, "bos_token_id": None}).bos_token_id is None


def test_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**SIZES, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    assert LlamaConfig.from_json(path) == LlamaConfig(**SIZES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be a positive int, got 0"),
        ({"hidden_size": "32"}, "hidden_size must be a positive int, got '32'"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be a positive int"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps must be a positive float, got nan"),
        ({"rope_theta": math.inf}, "rope_theta must be a positive float"),
        ({"num_key_value_heads": 3}, "multiple of num_key_value_heads"),
        ({"num_key_value_heads": -1}, "num_key_value_heads must be a positive int"),
        ({"hidden_size": 34}, "multiple of num_attention_heads"),
        ({"hidden_size": 36}, "head_dim must be even"),
        ({"attention_bias": True}, "attention_bias must be False"),
        ({"mlp_bias": True}, "mlp_bias must be False"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu'"),
        ({"dtype": "int8"}, "dtype must be one of float32"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        ({"eos_token_id": [1, 64]}, "eos_token_id must lie in the vocabulary of 64"),
        ({"bos_token_id": "a"}, "bos_token_id must lie in the vocabulary"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2}}, "got 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2}}, "low_freq_factor must be a positive float, got None"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "must be over low_freq_factor"),
        ({"rope_scaling": {"rope_type": "linear"}}, "has no 'factor'"),
        ({"rope_scaling": 3}, "null or a mapping"),
        ({"rope_parameters": 3}, "rope_parameters must be a mapping"),
        ({"model_type": "gpt2"}, "model_type must be 'llama', got 'gpt2'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is set"),
    ],
)
def test_bad_values_are_named(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LlamaConfig.from_json({**SIZES, **change})


def test_missing_fields_are_named() -> None:
    with pytest.raises(ConfigError, match="has no intermediate_size, num_attention_heads"):
        LlamaConfig.from_json({"vocab_size": 1, "hidden_size": 2, "num_hidden_layers": 1})


@pytest.mark.parametrize(("text", "message"), [("{", "not JSON"), ("[]", "one JSON object"), ("[" * 100_000, "JSON")])
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        LlamaConfig.from_json(path)
    with pytest.raises(ConfigError, match="cannot read"):
        LlamaConfig.from_json(tmp_path / "none.json")


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'llama-3.1-8b'\? known: smollm2-135m, .*405b"):
        config("Llama-3.1-8B-x")
