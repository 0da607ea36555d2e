"""How many colors the communication of a region takes. A color is a route at every router; a router can switch a color
between a few positions, so that patterns which never run at once share it."""

from collections.abc import Iterable

from wsc.machine import collectives
from wsc.machine.collectives import Line
from wsc.machine.steps import AllReduce, Multicast, Reduce, Rounds, Shift, Step
from wsc.machine.wafer import Wafer


def routes(steps: Iterable[Step]) -> int:
    """Routes of all distinct patterns among `steps`: two collectives over the same PEs in the same way are one.

    >>> one = AllReduce("chain", 8, 7, 4, 1)
    >>> routes([one, one, Multicast(8, 7, 4, 1)])        # chain 2, its way back 1, the multicast 1
    4
    """
    found: dict[tuple, int] = {}
    for step in steps:
        match step:
            case AllReduce(algorithm, pes, span, _, _, shape):
                form = collectives.all_reduce(algorithm, Line(pes, 1, span), shape=shape)
                found["all_reduce", algorithm, pes, span, shape] = form.colors
            case Reduce(algorithm, pes, span):
                found["reduce", algorithm, pes, span] = collectives.reduce(algorithm, Line(pes, 1, span)).colors
            case Multicast(pes, span):
                found["multicast", pes, span] = 1
            case Shift(distance):
                found["shift", distance] = 2  # one for each direction
            case Rounds(_, compute, fabric):
                found["rounds", fabric] = routes([*compute, *fabric])
    return sum(found.values())


def colors_needed(steps: Iterable[Step], wafer: Wafer) -> int:
    """Colors for `steps` that run one after the other in a region."""
    return -(-routes(steps) // int(wafer.switch_positions))
