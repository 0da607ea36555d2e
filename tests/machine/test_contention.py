"""Shared links worked out by hand, against a slow fabric in exact fractions, and by what must hold for any messages."""

import time
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsc.errors import ArgumentError
from wsc.machine import collectives
from wsc.machine.contention import PORTS, Link, Message, Transfer, transfer_times
from wsc.machine.wafer import WSE3, Wafer

GRID = replace(WSE3, rows=5, columns=5)
WIDE = replace(GRID, link_wavelets_per_cycle=2 * GRID.link_wavelets_per_cycle)
RELAY = 2 * WSE3.ramp_cycles + 1


def moving(messages: list[Message], wafer: Wafer = GRID) -> np.ndarray:
    """Cycles from start to the last wavelet's departure, distance left out."""
    transfer = transfer_times(messages, wafer)
    hops = np.array([max(abs(m.source[0] - y) + abs(m.source[1] - x) for y, x in m.targets) for m in messages])
    return np.where([m.wavelets > 0 for m in messages], transfer.contended - hops * wafer.hop_cycles - RELAY, 0)


def along(first: int, last: int, wavelets: float, start: float = 0) -> Message:
    return Message(source=(0, first), targets=((0, last),), wavelets=wavelets, start=start)


# --- the same model, slow and exact ---------------------------------------------------------------------------------


def route(message: Message) -> set[Link]:
    links = set()
    for ty, tx in message.targets:
        y, x = message.source
        links.add(Link(y, x, "ramp out"))
        while x != tx:
            links.add(Link(y, x, "east" if tx > x else "west"))
            x += 1 if tx > x else -1
        while y != ty:
            links.add(Link(y, x, "south" if ty > y else "north"))
            y += 1 if ty > y else -1
        links.add(Link(y, x, "ramp in"))
    return links


def fair(routes: dict[int, set[Link]]) -> dict[int, Fraction]:
    """Progressive filling, one full link at a time."""
    rates: dict[int, Fraction] = {}
    free = {link: Fraction(1) for links in routes.values() for link in links}
    waiting = dict(routes)
    while waiting:
        users = {link: [i for i, links in waiting.items() if link in links] for link in free}
        share, link = min((free[link] / len(users[link]), link) for link in free if users[link])
        for i in users[link]:
            rates[i] = share
            for other in waiting.pop(i):
                free[other] -= share
    return rates


def slow(messages: list[Message]) -> list[float]:
    routes = [route(message) for message in messages]
    left = {i: Fraction(m.wavelets) for i, m in enumerate(messages) if m.wavelets}
    took, now = [0.0] * len(messages), Fraction(0)
    while left:
        rates = fair({i: routes[i] for i in left if messages[i].start <= now})
        later = [Fraction(messages[i].start) for i in left if messages[i].start > now]
        then = min([now + left[i] / rate for i, rate in rates.items()] + later)
        for i, rate in rates.items():
            left[i] -= rate * (then - now)
            if not left[i]:
                del left[i]
                took[i] = float(then - Fraction(messages[i].start))
        now = then
    return took


# --- by hand --------------------------------------------------------------------------------------------------------


def test_alone_is_the_closed_form_of_a_multicast():
    for span, wavelets in ((1, 1), (4, 100)):
        transfer = transfer_times([along(0, span, wavelets)], GRID)
        alone = collectives.multicast(collectives.Line(span + 1, wavelets, span))
        assert transfer.ideal == transfer.contended == alone.cycles
        assert not transfer.congested and transfer.slowdown == 1


def test_eight_messages_through_one_link_take_eight_times_as_long():
    messages = [Message(source=(y, x), targets=((4, 3),), wavelets=1000) for y in range(4) for x in (0, 1)]
    transfer = transfer_times(messages, GRID)
    np.testing.assert_allclose(moving(messages), 8000)
    assert transfer.congested and transfer.slowdown == pytest.approx(8, rel=0.01)
    assert transfer.busiest == (Link(3, 3, "south"), 8000)


def test_eight_disjoint_messages_do_not_meet():
    eight = replace(WSE3, rows=8, columns=8)
    messages = [Message(source=(y, 0), targets=((y, 7),), wavelets=1000) for y in range(8)]
    transfer = transfer_times(messages, eight)
    assert not transfer.congested and transfer.slowdown == 1
    np.testing.assert_array_equal(transfer.contended, transfer.ideal)


def test_two_directions_of_a_link_and_two_messages_that_cross_do_not_meet():
    messages = [along(1, 3, 50), along(3, 1, 50), Message(source=(1, 2), targets=((0, 2),), wavelets=50)]
    messages.append(Message(source=(0, 0), targets=((2, 0),), wavelets=50))
    assert not transfer_times(messages, GRID).congested


def test_a_long_and_two_short_messages_on_a_line():
    """A to C, A to B, B to C of 100: all at 1/2, all done at 200. Short ones of 50: done at 100, when the long one has
    50 left and both links to itself: 150. One short of 50, one of 200: at 100 the first ends, the long one stays at 1/2
    behind the other until 200, when that has 100 left: 300."""
    for short, times in (((100, 100), (200, 200, 200)), ((50, 50), (150, 100, 100)), ((50, 200), (200, 100, 300))):
        np.testing.assert_allclose(moving([along(0, 2, 100), along(0, 1, short[0]), along(1, 2, short[1])]), times)


def test_what_a_slow_message_leaves_goes_to_the_others():
    """Three into PE 4 at 1/3 each; the one that shares the first link with a fourth leaves it 2/3 there.

    At 300 the three are done; the fourth has sent 200 of its 250 and is alone: 350."""
    messages = [along(0, 4, 100), along(3, 4, 100), Message((1, 4), ((0, 4),), 100), along(0, 1, 250)]
    np.testing.assert_allclose(moving(messages), [300, 300, 300, 300 + 50])


def test_a_late_message_takes_its_share_from_its_start_on():
    """100 sent alone until cycle 60, the last 40 at 1/2: done at 140, when the late one has 60 left: 200."""
    np.testing.assert_allclose(moving([along(0, 1, 100), along(0, 1, 100, start=60)]), [140, 140])


def test_an_idle_gap_between_two_messages_is_left_idle():
    np.testing.assert_allclose(moving([along(0, 1, 10), along(0, 1, 10, start=1e6)]), [10, 10])


def test_a_multicast_moves_at_the_rate_of_its_fullest_link():
    """The tree to PEs 1 and 2 meets a message on its second link; its first link is half idle for that."""
    tree = Message(source=(0, 0), targets=((0, 1), (0, 2)), wavelets=100)
    np.testing.assert_allclose(moving([tree, along(1, 2, 100), Message((1, 1), ((0, 1),), 50)]), [200, 200, 100])


def test_a_tree_loads_each_of_its_links_once():
    tree = Message(source=(2, 2), targets=((0, 0), (4, 0), (1, 0), (2, 4), (3, 2), (3, 2)), wavelets=7)
    transfer = transfer_times([tree], GRID)
    assert {Link(y, x, PORTS[port]) for y, x, port in transfer.links.tolist()} == route(tree)
    assert len(transfer.links) == len(route(tree)) and (transfer.loads == 7).all()
    assert transfer.ideal == 4 + RELAY + 7


def test_nothing_to_move_takes_no_time():
    for messages in ([], [along(0, 3, 0), along(3, 0, 0, start=5)]):
        transfer = transfer_times(messages, GRID)
        assert not transfer.ideal.any() and not transfer.contended.any()
        assert transfer.busiest is None and not transfer.congested and transfer.slowdown == 1
    assert moving([along(0, 1, 0), along(0, 1, 10)]).tolist() == [0, 10]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": ()}, r"from PE \(0, 0\) has no target: expected one PE"),
        ({"targets": ((0, 1), (0, 0))}, "has its source among its targets: expected other PEs"),
        ({"wavelets": -1}, "wavelets of the message .* is -1: expected a finite number, 0 or above"),
        ({"wavelets": float("nan")}, "is nan: expected a finite number"),
        ({"wavelets": "many"}, "is 'many': expected a finite number"),
        ({"start": float("inf")}, "start of the message .* is inf"),
        ({"targets": (0, 1)}, r"to \(0, 1\): expected every PE as whole \(y, x\)"),
        ({"targets": ((0, 1.5),)}, "expected every PE as whole"),
        ({"targets": 3}, "to 3: expected every PE as whole"),
    ],
)
def test_a_message_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        Message(**{"source": (0, 0), "targets": ((0, 1),), "wavelets": 1, **arguments})


@pytest.mark.parametrize(("source", "target"), [((0, 0), (5, 0)), ((0, 0), (0, -1)), ((0, 5), (0, 0))])
def test_a_pe_outside_the_wafer_is_refused(source, target):
    kind, pe = ("source", source) if max(source) > 4 else ("target", target)
    expected = rf"message 1 has PE \({pe[0]}, {pe[1]}\) as a {kind}, .* y in 0..4 and x in 0..4"
    with pytest.raises(ArgumentError, match=expected):
        transfer_times([along(0, 1, 1), Message(source, (target,), 0)], GRID)


# --- whatever the messages ------------------------------------------------------------------------------------------

PE = st.tuples(st.integers(0, 4), st.integers(0, 4))


@st.composite
def message(draw, starts: bool = True):
    pes = draw(st.lists(PE, min_size=2, max_size=5, unique=True))
    start = draw(st.integers(0, 80)) if starts else 0
    return Message(pes[0], tuple(pes[1:]), draw(st.integers(0, 60)), start)


TOGETHER = st.lists(message(), min_size=1, max_size=14)
ONE_LINK = st.lists(st.builds(along, st.just(0), st.just(1), st.integers(1, 60), st.integers(0, 80)), min_size=1)


@settings(max_examples=200, deadline=None)
@given(TOGETHER)
def test_agrees_with_the_slow_fabric(messages):
    np.testing.assert_allclose(moving(messages), slow(messages), rtol=1e-6, atol=1e-6)


@settings(deadline=None)
@given(TOGETHER)
def test_sharing_only_costs_and_one_alone_shares_nothing(messages):
    transfer = transfer_times(messages, GRID)
    assert (transfer.contended >= transfer.ideal).all() and transfer.slowdown >= 1
    alone = [transfer_times([one], GRID) for one in messages]
    np.testing.assert_array_equal(transfer.ideal, np.concatenate([one.contended for one in alone]))


@settings(deadline=None)
@given(TOGETHER)
def test_loads_are_the_wavelets_of_the_routes(messages):
    transfer = transfer_times(messages, GRID)
    loads: dict[Link, float] = {}
    for one in messages:
        for link in route(one) if one.wavelets else ():
            loads[link] = loads.get(link, 0) + one.wavelets
    assert {Link(y, x, PORTS[p]): w for (y, x, p), w in zip(transfer.links.tolist(), transfer.loads)} == loads
    assert transfer.busiest is None if not loads else transfer.busiest[1] == max(loads.values())


@settings(deadline=None)
@given(TOGETHER)
def test_the_last_of_a_link_is_done_no_sooner_than_its_wavelets_have_crossed(messages):
    took = moving(messages)
    for link in {link for one in messages if one.wavelets for link in route(one)}:
        through = [i for i, one in enumerate(messages) if one.wavelets and link in route(one)]
        last = max(messages[i].start + took[i] for i in through)
        first = min(messages[i].start for i in through)
        assert last - first >= sum(messages[i].wavelets for i in through) - 1e-6


@settings(deadline=None)
@given(st.lists(message(starts=False), max_size=8), st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_messages_of_one_path_wait_for_what_the_others_send_meanwhile(others, sizes):
    path = [Message((0, 0), ((3, 2),), wavelets) for wavelets in sizes]
    took = moving([*path, *others])[: len(path)]
    assert (took >= [sum(min(a, b) for b in sizes) - 1e-6 for a in sizes]).all()


@settings(deadline=None)
@given(ONE_LINK)
def test_one_link_is_never_idle_while_a_message_waits(messages):
    """However it is shared, its last wavelet leaves when that of a queue served one by one would."""
    end = 0.0
    for one in sorted(messages, key=lambda one: one.start):
        end = max(end, one.start) + one.wavelets
    assert max(moving(messages) + [one.start for one in messages]) == pytest.approx(end)


@settings(deadline=None)
@given(ONE_LINK)
def test_one_more_message_on_one_link_speeds_no_other_up(messages):
    assert (moving(messages)[:-1] >= moving(messages[:-1]) - 1e-6).all()


@settings(deadline=None)
@given(TOGETHER, st.randoms(use_true_random=False))
def test_the_order_of_messages_does_not_matter(messages, random):
    order = list(range(len(messages)))
    random.shuffle(order)
    np.testing.assert_allclose(moving([messages[i] for i in order]), moving(messages)[order], atol=1e-6)


@settings(deadline=None)
@given(st.lists(message(starts=False), min_size=1), ONE_LINK)
def test_twice_the_width_is_never_slower(together, one_link):
    """With one start for all exactly twice as fast. With many starts on many links it may be slower for one message:
    others that were kept waiting elsewhere can be there sooner."""
    np.testing.assert_allclose(moving(together, WIDE), moving(together) / 2, atol=1e-6)
    assert (moving(one_link, WIDE) <= moving(one_link) + 1e-6).all()


def random_messages(number: int, side: int, seed: int) -> list[Message]:
    random = np.random.default_rng(seed)
    pes = random.integers(0, side, (number, 4)).tolist()
    sizes = random.integers(1, 1000, number).tolist()
    return [Message((a, b), ((c, d),), w) for (a, b, c, d), w in zip(pes, sizes) if (a, b) != (c, d)]


def test_two_thousand_messages_take_seconds():
    hundred = replace(WSE3, rows=100, columns=100)
    messages, began = random_messages(2000, 100, seed=1), time.perf_counter()
    transfer = transfer_times(messages, hundred)
    assert isinstance(transfer, Transfer) and transfer.congested
    assert time.perf_counter() - began < 20  # 1 s on an idle machine
