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
# # A first wafer
#
# A wafer-scale chip is one piece of silicon with some 900,000 small processors (PEs), each with 48 KB of its own
# memory and links to its four neighbours. `wsc` places a JAX program on such a wafer, runs it here with the sums added
# in the wafer's order, and says where every cycle would go. Cycles and watts are modelled; outputs are computed.

# %%
import dataclasses

import jax
import jax.numpy as jnp
from IPython.display import SVG, display

import wsc

# %% [markdown]
# ## A small function
#
# `wsc.compile` takes a function and example arguments, as `jax.jit(...).lower(...)` does. Calling what comes back
# gives the outputs, and telemetry: what the wafer did.

# %%
w, x = jax.random.normal(jax.random.key(0), (512, 256)), jnp.ones((1, 512))
exe = wsc.compile(lambda w, x: jnp.tanh(x @ w), w, x, weight_argnums=0)
y, telemetry = exe(w, x)
print(telemetry)
print("largest difference to plain JAX:", float(abs(y - jnp.tanh(x @ w)).max()))
print(exe.as_text())

# %% [markdown]
# ## A real model, without its weights
#
# A cost needs shapes only, so Llama 3.1-8B takes no memory here. One run is one decode step: one more token for one
# user.

# %%
model = wsc.models.Llama.abstract("llama-3.1-8b")
llama = wsc.compile(model)
llama.report()

# %% [markdown]
# ## Where the time goes
#
# Most of it is not arithmetic: it is sums that cross hundreds of PEs, and instructions that have to be prepared.


# %%
def causes(exe):
    cost = exe.cost_analysis()
    return {name: cost[f"cycles_{name}"] for name in ("latency", "serial", "arithmetic", "overhead", "links")}


found = causes(llama)
for name, cycles in found.items():
    print(f"{name:12s}{cycles:12,.0f} cycles {100 * cycles / sum(found.values()):6.1f} %")

# %% [markdown]
# ## Another wafer
#
# Hardware is a frozen dataclass of numbers with sources. Change one and compile again.

# %%
changes = {
    "WSE-3": {},
    "25 % faster clock": {"clock_hz": 1.25 * wsc.WSE3.clock_hz},
    "two cycles a hop": {"hop_cycles": 2.0},
}
for name, change in changes.items():
    other = llama if not change else wsc.compile(model, wafer=dataclasses.replace(wsc.WSE3, **change))
    cost = other.cost_analysis()
    print(f"{name:18s}{cost['cycles']:12,.0f} cycles {cost['tokens_per_second']:8,.0f} tokens/s")

# %% [markdown]
# ## The floorplan
#
# Each stage of the model has a rectangle of PEs that keeps its weights. Equal stages have equal colours.


# %%
def floorplan(program, scale=0.4):
    wafer = program.wafer
    wide, high = wafer.columns * scale, wafer.rows * scale
    shapes = [f'<rect width="{wide}" height="{high}" fill="#eee"/>']
    for stage in (s for s in program.stages if s.region.wafer == 0):
        r = stage.region
        shapes.append(
            f'<rect x="{r.x * scale}" y="{r.y * scale}" width="{r.width * scale}" height="{r.height * scale}" '
            f'fill="hsl({137 * stage.template % 360},60%,70%)" stroke="white"><title>{stage.name}: {r}</title></rect>'
        )
    return SVG(f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}">{"".join(shapes)}</svg>')


display(floorplan(llama.program))

# %% [markdown]
# ## Text out of it
#
# SmolLM2-135M is fetched once (93 MB) and then runs through its placed program. Without a network this cell says so.

# %%
try:
    smol, tokenizer = wsc.models.load("smollm2-135m", progress=False)
    exe = wsc.compile(smol, context=256)
    print(exe.generate(tokenizer, "The capital of France is", max_new_tokens=12))
    print(exe)
except wsc.DownloadError as error:
    print(f"No model, going on without it: {type(error).__name__}")
