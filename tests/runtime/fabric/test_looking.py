"""Pictures, tables and traces of simulated programs, against numbers known by hand and against what was written."""

import builtins
import os

import jax.numpy as jnp
import numpy as np
import pytest

import wsc
from wsc.errors import ArgumentError
from wsc.runtime.fabric import lines, rectangles
from wsc.runtime.fabric.pictures import _figure, _largest, html
from wsc.runtime.fabric.program import Fabric, Instruction, encoded
from wsc.runtime.fabric.simulate import Run, simulate
from wsc.runtime.fabric.sizes import Timing
from wsc.runtime.fabric.trace import named, sample


@pytest.fixture(scope="module")
def chain():
    """Ten words down a chain of four: links 1 to 3 carry them west, in 10 + 6 * 3 = 28 cycles."""
    return simulate(lines.reduce("chain", 4, 10))


@pytest.fixture(scope="module")
def grid():
    return simulate(rectangles.all_reduce("chain", 5, 7, 3), Timing(setup=4))


@pytest.fixture
def blind():
    return simulate(lines.reduce("chain", 4, 10), watch=False)


def png_size(path) -> tuple[int, int]:
    found = path.read_bytes()
    assert found[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(found[16:20], "big"), int.from_bytes(found[20:24], "big")


def panels(figure) -> dict[str, np.ndarray]:
    return {a.get_title(): np.asarray(a.images[0].get_array()) for a in figure.axes if a.images and a.get_title()}


def test_links_are_shares_of_cycles(chain):
    pytest.importorskip("matplotlib")
    figure = chain.links_figure()
    found = panels(figure)
    assert len(found) == 6
    west = 100 * np.array([[0, 10, 10, 10]]) / 28
    assert np.allclose(found["link west"], west) and np.allclose(found["busiest link out"], west)
    assert not found["link east"].any() and not found["link north"].any()
    assert np.allclose(found["ramp, up or down, the busier"], 100 * 10 / 28)
    assert "28 cycles on 1 x 4 PEs" in figure.get_suptitle() and "ramp 2" in figure.get_suptitle()
    assert any("cycles of the run, %" in a.get_ylabel() for a in figure.axes)  # of the colour bar


def test_stalls_are_shares_of_cycles(grid):
    pytest.importorskip("matplotlib")
    found = panels(grid.stalls_figure())
    for name, start in (("starved", "PE starved"), ("full", "router: the way"), ("busy", "PE busy")):
        shown = next(a for title, a in found.items() if title.startswith(start))
        assert np.allclose(shown * grid.cycles / 100, grid.counts[name])
    assert max(a.max() for a in found.values()) <= 100


def test_pictures_are_written_in_full_or_not_at_all(grid, tmp_path):
    pytest.importorskip("matplotlib")
    grid.save_links(tmp_path / "links.png")
    grid.save_stalls(str(tmp_path / "stalls.png"))
    assert min(*png_size(tmp_path / "links.png"), *png_size(tmp_path / "stalls.png")) > 300
    grid.save_links(tmp_path / "links.svg")
    assert b"<svg" in (tmp_path / "links.svg").read_bytes()
    before = (tmp_path / "links.png").read_bytes()
    (tmp_path / "folder.png").mkdir()
    for bad in ("links", "links.bmp", "missing/links.png", "folder.png"):
        with pytest.raises(ArgumentError, match="cannot write"):
            grid.save_links(tmp_path / bad)
    assert (tmp_path / "links.png").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["folder.png", "links.png", "links.svg", "stalls.png"]


def test_a_large_grid_is_drawn_in_blocks_that_keep_their_largest():
    pytest.importorskip("matplotlib")
    array = np.zeros((1170, 755), np.int32)
    array[1169, 754] = array[601, 3] = 9
    blocks = _largest(array, 3)
    assert blocks.shape == (390, 252) and np.argwhere(blocks == 9).tolist() == [[200, 1], [389, 251]]
    assert np.array_equal(_largest(array[:4], 1), array[:4])
    fabric = Fabric(1170, 755)
    run = Run(18, fabric, Timing(), None, counts={"busy": array})
    figure = _figure(run, "all", {f"{i}": array for i in range(6)}, "%")
    assert panels(figure)["0"].shape == (585, 378) and panels(figure)["0"].max() == 50
    assert "largest of 2 x 2 PEs" in figure.get_suptitle()
    assert figure.axes[0].images[0].get_extent() == [-0.5, 755.5, 1169.5, -0.5]
    assert figure.axes[0].get_xlim() == (-0.5, 754.5)


def test_the_table_says_where_the_busiest_link_is(chain, grid):
    text = str(chain)
    assert "28" in text and "35.7 % of cycles, west from PE (0, 1)" in text
    assert f"{sum(chain.stalls().values()):,}" in text  # all of them are starved
    for name, n in grid.stalls().items():
        assert f"{n:,}" in str(grid), name
    assert repr(chain).startswith("<fabric Run: 28 cycles")


def test_a_notebook_shows_table_and_map(chain):
    pytest.importorskip("matplotlib")
    shown = chain._repr_html_()
    assert "busiest link" in shown and "data:image/png;base64," in shown


def test_without_counts_cycles_are_shown_and_the_rest_is_refused(blind, tmp_path):
    assert "28" in str(blind) and "watch=False" in str(blind) and "<img" not in blind._repr_html_()
    asked = (
        lambda: blind.finished,
        blind.stalls,
        blind.links_figure,
        blind.stalls_figure,
        lambda: blind.save_links(tmp_path / "a.png"),
        lambda: blind.save_trace(tmp_path / "a.pftrace"),
    )
    for ask in asked:
        with pytest.raises(ArgumentError, match=r"watch=True"):
            ask()
    assert not os.listdir(tmp_path)


def test_a_program_that_does_nothing_has_a_picture():
    pytest.importorskip("matplotlib")
    run = simulate(Fabric(2, 2))
    assert run.cycles <= 1 and "busiest link" not in str(run)
    assert not panels(run.links_figure())["busiest link out"].any()


def test_missing_packages_are_said(chain, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name.split(".")[0] in ("matplotlib", "perfetto"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ArgumentError, match=r"wsc\[plot\]"):
        chain.save_stalls(tmp_path / "a.png")
    with pytest.raises(ArgumentError, match=r"wsc\[trace\]"):
        chain.save_trace(tmp_path / "a.pftrace")
    assert html(chain) == "" and "busiest link" in chain._repr_html_()


def read(path):
    """What a written trace has: slices [(begin, end, name, arguments)] by the name of their track."""
    pytest.importorskip("perfetto", reason="reading a trace needs perfetto: pip install 'wsc[trace]'")
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

    trace = Trace.FromString(path.read_bytes())
    tracks = {p.track_descriptor.uuid: p.track_descriptor for p in trace.packet if p.HasField("track_descriptor")}
    (root,) = (t for t in tracks.values() if not t.HasField("parent_uuid"))
    assert root.child_ordering == root.EXPLICIT
    assert all(t.parent_uuid == root.uuid for t in tracks.values() if t is not root)
    found = {t.name: [] for t in tracks.values() if t is not root}
    opened = {}
    for p in trace.packet:
        if p.HasField("track_event"):
            event = p.track_event
            if event.type == TrackEvent.TYPE_SLICE_BEGIN:
                arguments = {a.name: a.uint_value for a in event.debug_annotations}
                opened[event.track_uuid] = (p.timestamp, event.name, arguments)
            else:
                assert event.type == TrackEvent.TYPE_SLICE_END
                begin, name, arguments = opened.pop(event.track_uuid)
                found[tracks[event.track_uuid].name].append((begin, p.timestamp, name, arguments))
    assert not opened
    return root, found


def test_a_trace_of_a_chain_has_the_times_known_by_hand(chain, tmp_path):
    chain_path = tmp_path / "chain.pftrace"
    pytest.importorskip("perfetto")
    chain.save_trace(chain_path)
    root, found = read(chain_path)
    assert "1 ns is 1 cycle" in root.name and "28 cycles" in root.name
    # The last PE sends its ten words in ten cycles; each before it adds and sends on 6 cycles later: two ramps of two
    # cycles, one hop, one for adding.
    times = {name: [(begin, end, what) for begin, end, what, _ in them] for name, them in found.items()}
    assert times == {
        "PE (0, 0)": [(0, 28, "reduce color 0")],
        "PE (0, 1)": [(0, 22, "reduce color 1, send color 0")],
        "PE (0, 2)": [(0, 16, "reduce color 0, send color 1")],
        "PE (0, 3)": [(0, 10, "send color 0")],
    }
    assert found["PE (0, 3)"][0][3] == {"instruction": 0, "length": 10, "repeat": 1, "address": 0}


def test_threads_have_tracks_and_slices_follow_one_another(tmp_path):
    run = simulate(lines.shift(6, 2, 5), Timing(setup=3))
    pytest.importorskip("perfetto")
    run.save_trace(tmp_path / "shift.pftrace", pes=[(0, 3), (0, 5), (0, 3)])
    _, found = read(tmp_path / "shift.pftrace")
    assert list(found) == ["PE (0, 3)", "PE (0, 3), thread 1", "PE (0, 5), thread 1"]  # the last one sends nothing
    for name, x, thread in (("PE (0, 3)", 3, 0), ("PE (0, 3), thread 1", 3, 1), ("PE (0, 5), thread 1", 5, 1)):
        assert [end for _, end, *_ in found[name]] == run.ended[thread, : len(found[name]), 0, x].tolist()
    assert found["PE (0, 3)"][0][2].startswith("send color") and found["PE (0, 5), thread 1"][0][2].startswith(
        "receive"
    )


def test_instructions_follow_one_another_on_a_track(grid, tmp_path):
    pytest.importorskip("perfetto")
    grid.save_trace(tmp_path / "grid.pftrace")
    _, found = read(tmp_path / "grid.pftrace")
    assert len(found) == 35
    for y, x in ((0, 0), (4, 6), (2, 3)):
        them = found[f"PE ({y}, {x})"]
        count = int(grid.fabric.instructions[0, y, x])
        assert [end for _, end, *_ in them] == grid.ended[0, :count, y, x].tolist()
        assert [begin for begin, *_ in them] == [0, *(end for _, end, *_ in them[:-1])]
        assert them[-1][1] == grid.finished[y, x]


def test_a_placed_stage_can_be_looked_at(tmp_path):
    pytest.importorskip("perfetto")
    w, x = jnp.ones((32, 16)), jnp.ones((1, 32))
    exe = wsc.compile(lambda w, x: jnp.tanh(x @ w), w, x, weight_argnums=0, grid=(4, 2))
    run = exe.simulate(w, x).run
    run.save_trace(tmp_path / "stage.pftrace")
    _, found = read(tmp_path / "stage.pftrace")
    assert len([name for name in found if "thread" not in name]) == 8
    assert max(end for them in found.values() for _, end, *_ in them) == run.cycles
    for name, them in found.items():
        first = [what for _, _, what, _ in them]
        assert first[0] == "work", name  # each multiplies its tile, then they add up, then all know the sums
        assert any("reduce color" in what or "send color" in what for what in first)
        assert "receive color" in first[-2] or "send color" in first[-2], first


@pytest.mark.parametrize("pes", [[], [(5, 0)], [(0, -1)], [(0, 7)], [3], [(0, 0.5)], ["ab"]])
def test_pes_that_are_not_there_are_refused(grid, pes, tmp_path):
    pytest.importorskip("perfetto")
    with pytest.raises(ArgumentError, match="PE"):
        grid.save_trace(tmp_path / "a.pftrace", pes=pes)
    assert not os.listdir(tmp_path)


def test_a_sample_has_corners_and_the_centre():
    assert sample(3, 5) == [(y, x) for y in range(3) for x in range(5)]
    for rows, columns in ((1170, 755), (1, 100_000), (3000, 2), (17, 17), (40, 9)):
        found = set(sample(rows, columns))
        assert {(0, 0), (0, columns - 1), (rows - 1, 0), (rows - 1, columns - 1), (rows // 2, columns // 2)} <= found
        assert len(found) == len(sample(rows, columns)) <= 600


@pytest.mark.parametrize(
    ("instruction", "name"),
    [
        (Instruction(1), "work"),
        (Instruction(1, joins=True, bare=True), "wait for threads"),
        (Instruction(1, load=True, store=True), "copy"),
        (Instruction(1, sends=3, load=True), "send color 3"),
        (Instruction(1, reads=(2,), store=True), "receive color 2"),
        (Instruction(1, reads=(2,), sends=5), "pass on color 2, send color 5"),
        (Instruction(1, reads=(2,), sends=5, store=True), "receive color 2, send color 5"),
        (Instruction(1, reads=(2,), load=True, store=True), "reduce color 2"),
        (Instruction(1, reads=(2, 4), store=True), "reduce color 2 and 4"),
        (Instruction(1, reads=(31,), load=True, store=True, largest=True), "maximum color 31"),
    ],
)
def test_instructions_are_named_by_what_they_do(instruction, name):
    assert named(encoded(instruction)) == name
