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
# # How far to trust it
#
# Everything that `wsc` says about time comes from closed forms and a few dozen numbers. This notebook holds them
# against what others have measured, asks which numbers matter, and puts another group's mapping on the same machine.

# %%
import io

import numpy as np
from IPython.display import Image

import wsc
from wsc.machine.published import BARS

# %% [markdown]
# ## Published measurements
#
# Each row is predicted anew. *held out*: no constant was taken from that row. The services are left out here, as they
# take a few seconds more: `wsc validate` has them.

# %%
found = wsc.validate([group for group in BARS if group != "services"])
for group, (mean, largest, bar, within) in found.groups().items():
    print(f"{group:13s} mean {mean:5.2f} %, largest {largest:5.2f} %, bar {bar}, {'within' if within else 'OVER'}")

# %%
picture = io.BytesIO()
found.plot(picture)  # or a path: found.plot("out.png")
Image(picture.getvalue(), width=500)

# %% [markdown]
# ## Which number matters most?
#
# The modelled time of a placed program is a JAX function of the wafer, so it has derivatives.

# %%
exe = wsc.compile(wsc.models.Llama.abstract("llama-3.2-1b"))
wsc.sensitivity(exe)

# %% [markdown]
# And it can be mapped over many wafers at once: a clock against the cycles of a hop, the placement staying as it is.

# %%
hops, clocks = np.meshgrid(np.linspace(0.5, 3, 100), np.linspace(0.6e9, 1.4e9, 100))
seconds = wsc.sweep(exe, hop_cycles=hops.ravel(), clock_hz=clocks.ravel()).reshape(hops.shape)
print(f"{seconds.size:,} wafers: {1 / seconds.max():,.0f} to {1 / seconds.min():,.0f} tokens/s")

# %% [markdown]
# ## Another mapping on the same machine
#
# WaferLLM maps one layer onto a square of PEs. Its kernels go through the same passes; with more cores decode slows
# down and prefill speeds up, as was measured.

# %%
model = wsc.models.Llama.abstract("llama-3-8b")
for side in (420, 540, 660):
    theirs = wsc.compile(model, strategy="waferllm", grid=(side, side), context=4096, wafer=wsc.WSE2)
    decode = theirs.cost_analysis()["cycles_per_layer"]
    prefill = theirs.prefill.cost_analysis()["cycles_per_layer"]
    print(f"{side} x {side}: decode {decode:9,.0f}, prefill {prefill:12,.0f} cycles a layer")
