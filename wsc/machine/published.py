"""Published measurements that the machine model is held against. Data only: `wsc validate` predicts each of them.

`setting` says what was measured, in the words that `wsc.validate` understands. `fits` names the constants that were
taken from the row, so that it cannot be a test of them; rows without are held out. The sources are named once each.
"""

from dataclasses import dataclass

HPDC = "Near-Optimal Wafer-Scale Reduce, HPDC 2024: its model, below 4 % from a CS-2"
SDK = "vendor SDK: samples in its simulator"
SILICON = "CS-2 silicon: published TFLOP/s"
WAFERLLM = "WaferLLM, OSDI 2025: WSE-2"
SERVICE = "Cerebras Inference, 2024: one user, 16-bit weights, no speculative decoding"
SCALING = "Cerebras and Sandia, December 2024: a model of 1T parameters on CS-3 systems, sizes and batch not published"
SERVING = "one H100, Llama-3-8B, input and output 1,024 tokens"


@dataclass(frozen=True)
class Measurement:
    """One published number: `value` in `unit`, what it is of, where it was published."""

    group: str
    what: str
    setting: tuple
    value: float
    unit: str
    source: str
    fits: tuple[str, ...] = ()


# Mean and largest absolute error that a group may have, in percent; None where nothing is promised.
BARS: dict[str, tuple[float, float] | None] = {
    "collectives": (1.0, 1.0),
    "single PE": (10.0, 25.0),
    "small meshes": (10.0, 25.0),
    "compiled": (20.0, 20.0),
    "GEMV/GEMM": (20.0, 30.0),  # of the GEMV the number of cores is not published
    "decode": (5.0, 10.0),
    "prefill": (7.0, 12.0),
    "KV capacity": (15.0, 15.0),
    "GPUs": (12.0, 12.0),
    "services": None,
    "scaling": None,
}


def _collectives() -> list[Measurement]:
    table = {1: (3067, 560, 733, 517), 256: (3322, 2349, 1238, 772), 4096: (7162, 36909, 8843, 4612)}
    names = ("chain", "tree", "two_phase", "multicast")
    return [
        Measurement(
            "collectives", f"{name}, 512 PEs, {b} wavelets", ("collective", name, 512, b), cycles, "cycles", HPDC
        )
        for b, row in table.items()
        for name, cycles in zip(names, row, strict=True)
    ]


def _single_pe() -> list[Measurement]:
    rows = [
        ("fp32 FMAC, 14 elements", ("vector", "wse2", "fmac", 1, 14, 4, 0.0), 15, ("issue_cycles",)),
        ("fp32 vector, 5,124 elements, bank conflict", ("vector", "wse2", "fmac", 1, 5124, 4, 1.0), 10254, ()),
        ("fp32 vector, 5,124 elements, one a cycle", ("vector", "wse2", "fmac", 1, 5124, 4, 0.0), 5130, ()),
        ("fp32 vector, 5,124 elements, two a cycle", ("vector", "wse2", "vector", 1, 5124, 4, 0.0), 2597, ()),
        ("fp32 vector, 1,028 elements, bank conflict", ("vector", "wse2", "fmac", 1, 1028, 4, 1.0), 2062, ()),
        ("fp32 vector, 1,028 elements, one a cycle", ("vector", "wse2", "fmac", 1, 1028, 4, 0.0), 1034, ()),
        ("fp16 FMAC in a map, 8 elements, a call", ("map", "wse3", 8, 2), 8.55, ("map_cycles",)),
        ("fp16 FMAC in a map, 16 elements, a call", ("map", "wse3", 16, 2), 10.85, ()),
        ("local GEMM fp32, 256 FMACs of 8", ("loop", "wse2", 256, 8, 4), 9756, ("loop_cycles", "conflict32")),
        ("local GEMM fp32, 1,024 FMACs of 8", ("loop", "wse2", 1024, 8, 4), 38844, ()),
        ("local GEMM fp32, 1,024 FMACs of 32", ("loop", "wse2", 1024, 32, 4), 88795, ()),
        ("local GEMM fp32, 4,096 FMACs of 32", ("loop", "wse2", 4096, 32, 4), 357853, ()),
    ]
    found = [Measurement("single PE", w, s, v, "cycles", SDK, f) for w, s, v, f in rows]
    column = "25-point stencil fp32, 1,000 cells a PE, all of WSE-2, a step"
    return [*found, Measurement("single PE", column, ("column", 1000), 0.0761e-3 * 0.85e9, "cycles", SILICON)]


def _small_meshes() -> list[Measurement]:
    rows = [
        ("SUMMA fp32, 4 x 4 PEs, 14^3 tiles: products", ("summa", "products"), 45783, ("nest_cycles",)),
        ("SUMMA: broadcasts", ("summa", "broadcasts"), 3060, ("background_wavelets_per_cycle",)),
        ("SUMMA: host to device", ("summa", "in"), 7226, ()),
        ("SUMMA: device to host", ("summa", "out"), 10522, ("memcpy_out_cycles",)),
        ("SUMMA: whole", ("summa", "whole"), 64013, ()),
        ("multicast: arrival at the 2nd PE on", ("arrival", 1156, 1), 1158, ("deliver_cycles",)),
        ("multicast: arrival at the 3rd PE on", ("arrival", 1156, 2), 1160, ()),
        ("star stencil, one value a PE, no tasks, WSE-2", ("direct", "wse2"), 16, ()),
        ("star stencil, one value a PE, no tasks, WSE-3", ("direct", "wse3"), 23, ()),
    ]
    tiles = {
        "wse2": {1: 127, 2: 141, 3: 188, 10: 783, 64: 25270},
        "wse3": {1: 157, 2: 177, 3: 197, 10: 558, 64: 16924},
    }
    rows += [
        (f"star stencil, tasks, tile {n} x {n}, {wafer.upper().replace('E', 'E-')}", ("stencil", wafer, n), cycles, ())
        for wafer, measured in tiles.items()
        for n, cycles in measured.items()
    ]
    return [Measurement("small meshes", w, s, v, "cycles", SDK, f) for w, s, v, f in rows]


def _compiled() -> list[Measurement]:
    what = "25-point stencil written in jax.numpy, compiled for all of a WSE-2, fp32, 1,000 cells a PE, a step"
    return [Measurement("compiled", what, ("compiled stencil", 1000), 0.0761e-3 * 0.85e9, "cycles", SILICON)]


def _products() -> list[Measurement]:
    return [
        Measurement(
            "GEMV/GEMM", "SGEMM fp32 33,000^2, 750 x 750 PEs", ("sgemm", 33_000, 750), 175.1e6, "cycles", SILICON
        ),
        Measurement(
            "GEMV/GEMM", "GEMV fp16 16,384^2, core count not stated: the best published grid", ("gemv", 16_384), 1320,
            "cycles", WAFERLLM,
        ),
    ]  # fmt: skip


DECODE = {
    "llama-3-8b": {420: 12732, 540: 13742, 660: 15323},
    "llama-2-13b": {420: 13486, 540: 14478, 660: 15806},
    "codellama-34b": {420: 15796, 540: 16280, 660: 16860},
}
PREFILL = {
    "llama-3-8b": {480: 6.929e6, 600: 5.624e6, 720: 5.086e6},
    "llama-2-13b": {480: 8.231e6, 600: 6.683e6, 720: 6.437e6},
    "codellama-34b": {480: 17.156e6, 600: 12.449e6, 720: 11.009e6},
}


def _layers(group: str, table: dict, what: str, fits: tuple[str, ...]) -> list[Measurement]:
    return [
        Measurement(
            group, f"{model}, {p} x {p}, {what}", (group, model, p, 4096), cycles, "cycles/layer", WAFERLLM, fits
        )
        for model, row in table.items()
        for p, cycles in row.items()
    ]


def _others() -> list[Measurement]:
    rows = [
        Measurement(
            "KV capacity", "llama-3-8b, 360 x 360, appended to a row", ("kv", "llama-3-8b", 360, False), 382, "tokens",
            WAFERLLM,
        ),
        Measurement(
            "KV capacity", "llama-3-8b, 360 x 360, shifted", ("kv", "llama-3-8b", 360, True), 137_548, "tokens",
            WAFERLLM,
        ),
        Measurement("services", "llama-3.1-8b on one WSE-3", ("service", "llama-3.1-8b", 1), 1800, "tokens/s", SERVICE),
        Measurement("services", "llama-3.1-70b, four WSE-3", ("service", "llama-3.1-70b", 4), 450, "tokens/s", SERVICE),
        Measurement("scaling", "training speed, 16 wafers against one", ("scaling", 16), 15.3, "times one", SCALING),
        Measurement("GPUs", "1 x A100, 8B, context 4,096", ("gpu", "a100", 1, 1, 4096), 78.9, "tokens/s", WAFERLLM),
        Measurement(
            "GPUs", "8 x A100, 8B, context 4,096", ("gpu", "a100", 8, 1, 4096), 260.4, "tokens/s", WAFERLLM,
            ("sync_seconds",),
        ),
    ]  # fmt: skip
    curves = {"vLLM": (126.5, 92.9, 78.4), "TensorRT-LLM": (132.5, 100.8, 82.0)}
    fits = ("efficiency", "sequence_seconds")
    return rows + [
        Measurement("GPUs", f"H100, {stack}, batch {b}", ("gpu", "h100", 1, b, 1536), v, "tokens/s/user", SERVING, fits)
        for stack, row in curves.items()
        for b, v in zip((1, 16, 32), row, strict=True)
    ]


MEASUREMENTS: tuple[Measurement, ...] = (
    *_collectives(),
    *_single_pe(),
    *_small_meshes(),
    *_compiled(),
    *_products(),
    *_layers("decode", DECODE, "4,096 tokens of context", ("transcendental_cycles",)),
    *_layers("prefill", PREFILL, "4,096 tokens", ()),
    *_others(),
)
