"""Makes data/smollm2_golden.npz anew: what transformers computes for SmolLM2-135M-Instruct, from the same GGUF.

    pip install 'wsc[demo,reference]'
    python tests/models/make_golden.py

The prompt and 30 greedy tokens (float32), then float64 logits of every position, kept as
    ids      int32 [35]        prompt of 5 tokens and what follows
    columns  int32 [C]         kept token ids: 32 best of every position, then random ones
    logits   float32 [35, C]
    sums     float64 [35]      logsumexp over the whole vocabulary
"""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from wsc.models.download import smollm2

PROMPT, NEW, COLUMNS = "The capital of France is", 30, 512


def main() -> None:
    path = smollm2()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    prompt = tokenizer(PROMPT, return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**prompt, max_new_tokens=NEW, do_sample=False)
        logits = model.double()(ids).logits[0].numpy()
    save(ids[0].numpy(), logits)


def save(ids: np.ndarray, logits: np.ndarray) -> None:
    best = np.unique(np.argsort(logits, axis=1)[:, -32:])
    others = np.setdiff1d(np.arange(logits.shape[1]), best)
    columns = np.concatenate([best, np.random.default_rng(0).permutation(others)])[:COLUMNS]
    top = logits.max(axis=1)
    np.savez_compressed(
        Path(__file__).with_name("data") / "smollm2_golden.npz",
        ids=ids.astype(np.int32),
        columns=columns.astype(np.int32),
        logits=logits[:, columns].astype(np.float32),
        sums=top + np.log(np.exp(logits - top[:, None]).sum(axis=1)),
    )


if __name__ == "__main__":
    main()
