"""Closed forms for moving data between PEs on a line, in cycles.

Source of every formula: "Near-Optimal Wafer-Scale Reduce" (HPDC 2024), model error below 4 % on a CS-2. There

    T = max(C, E/N + L) + (2*T_R + 1) * D

with C the most wavelets any PE sends or receives, E the hops summed over wavelets, N the links used, L the longest
path and D the longest chain of dependent operations. Arguments here: `pes` participants, `wavelets` B each, `span`
hops from the first participant to the last (pes - 1 when neighbours take part), `relay` = 2*T_R + 1 cycles.
Each function returns (latency, serial): the cycles that distance and dependence cost whatever the amount of data,
and the cycles that the amount of data adds.
"""

import math
from functools import lru_cache

REDUCES = ("chain", "tree", "two_phase")


def group_size(pes: int) -> int:
    """S of the two-phase reduce: the participants of one group, about sqrt(pes)."""
    return max(1, round(math.sqrt(pes)))


def multicast(pes: int, wavelets: float, span: float, relay: float) -> tuple[float, float]:
    """One PE sends to all others along the line: `B + P + 2*T_R`."""
    if pes <= 1:
        return 0.0, 0.0
    return span + relay, wavelets


def chain(pes: int, wavelets: float, span: float, relay: float) -> tuple[float, float]:
    """Neighbour to neighbour, `out = in + memory`, one wavelet a cycle: `B + (2*T_R + 2)*(P - 1)`."""
    return span + relay * (pes - 1), wavelets


def tree(pes: int, wavelets: float, span: float, relay: float) -> tuple[float, float]:
    """Binary tree: `max(B*lg P, B*P*lg P/(2*(P-1)) + P - 1) + (2*T_R + 1)*lg P`."""
    depth = math.ceil(math.log2(pes))
    whole = max(wavelets * depth, wavelets * pes * depth / (2 * (pes - 1)) + span) + relay * depth
    latency = span + relay * depth
    return latency, whole - latency


def two_phase(pes: int, wavelets: float, span: float, relay: float) -> tuple[float, float]:
    """Chains within groups of S, then one over the G = ceil(P/S) groups: `max(2B, B*E/(P-1) + P-1) + (2*T_R+1)*D`
    with E = (S-1)*G + (G-1)*S hops a wavelet and D = S-1 + G-1, which gives the published table exactly."""
    size = group_size(pes)
    groups = math.ceil(pes / size)
    dependent = (size - 1) + (groups - 1)
    whole = max(2 * wavelets, wavelets * _two_phase_hops(pes) / (pes - 1) + span) + relay * dependent
    latency = span + relay * dependent
    return latency, whole - latency


def _two_phase_hops(pes: int) -> int:
    size = group_size(pes)
    groups = math.ceil(pes / size)
    return (size - 1) * groups + (groups - 1) * size


_FORMS = {"chain": chain, "tree": tree, "two_phase": two_phase}


def reduce(algorithm: str, pes: int, wavelets: float, span: float, relay: float) -> tuple[float, float]:
    """The named reduce; nothing moves when only one PE takes part."""
    return _FORMS[algorithm](pes, wavelets, span, relay) if pes > 1 else (0.0, 0.0)


@lru_cache(maxsize=65536)
def cheapest_reduce(pes: int, wavelets: float, span: float, relay: float) -> str:
    """The name of the reduce with the fewest cycles.

    >>> cheapest_reduce(512, 1, 511, 5), cheapest_reduce(512, 256, 511, 5), cheapest_reduce(512, 4096, 511, 5)
    ('tree', 'two_phase', 'chain')
    """
    return min(REDUCES, key=lambda name: sum(reduce(name, pes, wavelets, span, relay)))


def reduce_wavelet_hops(algorithm: str, pes: int, wavelets: float, span: float) -> float:
    """E: hops summed over every wavelet the reduce sends."""
    if pes <= 1:
        return 0.0
    spacing = span / (pes - 1)
    if algorithm == "chain":
        return wavelets * span
    if algorithm == "tree":
        return wavelets * spacing * pes * math.ceil(math.log2(pes)) / 2
    return wavelets * spacing * _two_phase_hops(pes)
