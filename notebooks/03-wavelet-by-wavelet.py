# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Wavelet by wavelet
#
# Closed forms say how long a collective should take. The fabric simulator moves every 32-bit wavelet from router to
# router, cycle by cycle, with the number in it. This notebook looks at an all-reduce, and at a layer of a Llama.

# %%
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from IPython.display import Image, display

import wsc
from wsc.machine.collectives import Costs, Line, all_reduce
from wsc.runtime.fabric import rectangles
from wsc.runtime.fabric.simulate import Timing, simulate
from wsc.runtime.fabric.trace import named, slices

# %% [markdown]
# ## An all-reduce
#
# Every PE has 16 numbers, and wants their sums over all PEs: along its row first, then along its column. Each row adds
# up in groups towards the PE in its middle, which sends the sums back to both sides.

# %%
rows, columns, wavelets = 24, 36, 16
numbers = np.random.default_rng(0).normal(size=(wavelets, rows, columns)).astype(np.float32)
program = rectangles.all_reduce("centre_two_phase", rows, columns, wavelets)
run = simulate(program, Timing.of(wsc.WSE3), memory=numbers)

sums = numbers.sum(axis=(1, 2), dtype=np.float64)
print("every PE has the same sums:", bool((run.memory == run.memory[:, :1, :1]).all()))
print("largest error against numpy in float64:", float(abs(run.memory[:, 0, 0] - sums).max()))

# %% [markdown]
# What happened, and what the links carried: wavelets stream towards the middle of each row and column, so the ramps of
# the PEs there are the busiest part of the wafer.

# %%
display(run)

# %% [markdown]
# Where the other cycles went. Most PEs wait for sums to come back; preparing an instruction takes 21 cycles each time.

# %%
folder = Path(tempfile.mkdtemp())
run.save_stalls(folder / "stalls.png")  # or run.stalls_figure(), a figure of matplotlib
display(Image(folder / "stalls.png"))

# %% [markdown]
# ## Beside the closed form
#
# Which algorithm is best depends on the length of the line and the number of wavelets. The closed forms choose; this
# is what comes of it.


# %%
def closed(name, pes, shape=()):
    return all_reduce(name, Line(pes, wavelets, pes - 1), Costs.of(wsc.WSE3), shape)


for name in ("chain", "two_phase", "centre_chain", "centre_two_phase"):
    simulated = simulate(rectangles.all_reduce(name, rows, columns, wavelets), Timing.of(wsc.WSE3)).cycles
    form = closed(name, columns).then(closed(name, rows)).cycles
    print(f"{name:17s} simulated {simulated:5,d}   closed form {form:7,.1f}   {100 * (form / simulated - 1):+5.1f} %")

# %% [markdown]
# ## When each PE did what
#
# `save_trace` writes the instructions of some PEs for [ui.perfetto.dev](https://ui.perfetto.dev), a cycle as a
# nanosecond. Here, the slices of two neighbours near the middle of a row, as text.

# %%
for pe in ((12, 17), (12, 18)):
    print(f"PE {pe}:", [f"{s.begin} to {s.end}: {named(s.code)}" for s in slices(run, 0, *pe)])
try:
    run.save_trace(folder / "all-reduce.pftrace")
except wsc.WscError as error:  # without the package perfetto
    print(error)

# %% [markdown]
# ## A layer of a Llama
#
# `exe.simulate` takes a placed stage, here a decode layer after three tokens: its collectives and moves wavelet by
# wavelet, its arithmetic as so many cycles a PE. With the arguments of a call, wavelets carry what the PEs really add
# up, and what comes out is bit for bit what the compiled program computes.

# %%
config = wsc.models.LlamaConfig(
    vocab_size=96, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=48,
)  # fmt: skip
model = wsc.models.Llama(config, rngs=nnx.Rngs(0))
exe = wsc.compile(model, context=16, grid=(8, 12))
cache = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), model.abstract_cache(batch=1, context=16))
token = jnp.ones((1, 1), jnp.int32)
for _ in range(3):
    (logits, cache), _ = exe(token, cache)
    token = logits[:, -1].argmax(-1, keepdims=True).astype(jnp.int32)

layer = exe.simulate(token, cache)
print("outputs equal, bit for bit:", layer.equal)
display(layer)

# %% [markdown]
# Its links and its waits. So small a layer is mostly instructions being done; the larger the region, the more of the
# time is spent waiting for sums.

# %%
display(layer.run)
