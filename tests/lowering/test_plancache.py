"""Plans are kept and found again; nothing that lies in the cache can break or change a program."""

import dataclasses
import json
import os
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small, traced

import wsc
from wsc.errors import FitError
from wsc.lowering import plancache
from wsc.lowering.normalize import normalize
from wsc.lowering.plan import plan_stages
from wsc.lowering.roles import find_roles
from wsc.lowering.rules import RULES
from wsc.models import Llama, LlamaConfig

KEY = "0" * 64
PLAN = {"regions": [[0, 0, 0, 4, 5]], "more": {"chunk": 3, "factor": 0.1, "name": "ä"}}
compiler = sys.modules["wsc.compile"]  # the package's own `compile` is the function


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("WSC_PLAN_CACHE", str(tmp_path / "plans"))
    return tmp_path / "plans"


def three_layers(p, x):
    for layer in p["blocks"]:
        x = x + jnp.tanh(x @ layer["a"]) @ layer["b"]
    return x


def layers(wide: int = 32) -> dict:
    return {"blocks": [{"a": jnp.ones((24, wide)), "b": jnp.ones((wide, 24))} for _ in range(3)]}


def compile_layers(**options) -> wsc.Executable:
    return wsc.compile(three_layers, layers(), jnp.ones((1, 24)), **({"wafer": small(24, 24, 2048)} | options))


def stages(fn, *args, weights=frozenset({0})) -> list:
    found = traced(fn, *args)
    normal = normalize(found)
    return plan_stages(normal, find_roles(normal, found.arg_names, weights))


def matmul(shape=(8, 16), fn=lambda w, x: jnp.tanh(x @ w)) -> list:
    return stages(fn, jnp.ones(shape), jnp.ones((2, shape[0])))


# The key


def test_equal_programs_have_equal_keys():
    assert plancache.key([matmul()], wsc.WSE3, 1) == plancache.key([matmul()], wsc.WSE3, 1)
    blocks = stages(three_layers, layers(), jnp.ones((1, 24)), weights=frozenset(range(6)))
    again = stages(three_layers, layers(), jnp.ones((1, 24)), weights=frozenset(range(6)))
    assert len(blocks) == 3
    assert plancache.key([blocks]) == plancache.key([again])


def test_what_changes_a_plan_changes_the_key(monkeypatch):
    base = matmul()
    keys = [
        plancache.key([base], wsc.WSE3, 1),
        plancache.key([base], wsc.WSE3, None),
        plancache.key([base], wsc.WSE2, 1),
        plancache.key([base], dataclasses.replace(wsc.WSE3, hop_cycles=1.5), 1),
        plancache.key([base, base], wsc.WSE3, 1),
        plancache.key([matmul((8, 24))], wsc.WSE3, 1),
        plancache.key([matmul(fn=lambda w, x: jnp.sin(x @ w))], wsc.WSE3, 1),
        plancache.key([matmul(fn=lambda w, x: jnp.tanh(x @ w) * 2)], wsc.WSE3, 1),
        plancache.key([matmul(fn=lambda w, x: jnp.tanh(x @ w) * 3)], wsc.WSE3, 1),
        plancache.key([matmul(fn=lambda w, x: (x @ w)[:, :4])], wsc.WSE3, 1),
        plancache.key([matmul(fn=lambda w, x: (x @ w)[:, 4:8])], wsc.WSE3, 1),
        plancache.key([matmul(fn=lambda w, x: (x @ w).astype(jnp.float16))], wsc.WSE3, 1),
        plancache.key([stages(lambda w, x: jnp.tanh(x @ w), jnp.ones((8, 16)), jnp.ones((2, 8)), weights=frozenset())]),
    ]
    monkeypatch.setattr(plancache, "SOURCES", "another compiler")
    keys.append(plancache.key([base], wsc.WSE3, 1))
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 64 for key in keys)


def test_order_of_stages_and_where_their_inputs_come_from_are_in_the_key():
    weights = {f"l{n}": {"w": jnp.ones((8, 8 + 4 * (n == 3)))} for n in (1, 2, 3)}

    def chain(p, x):
        h = jnp.tanh(x @ p["l1"]["w"])
        return jnp.tanh(h @ p["l2"]["w"]) @ p["l3"]["w"]

    def skip(p, x):
        h = jnp.tanh(x @ p["l1"]["w"])
        g = jnp.tanh(x @ p["l2"]["w"])
        return jnp.tanh(h + g) @ p["l3"]["w"]

    one, two = (stages(f, weights, jnp.ones((1, 8)), weights=frozenset({0, 1, 2})) for f in (chain, skip))
    assert [len(one), len(two)] == [3, 3]
    assert len({plancache.key([s]) for s in (one, two, one[::-1])}) == 3


def test_text_of_values_does_not_depend_on_the_order_of_sets_and_dicts():
    one, two = {"a": 1, "b": {3, 11, 19}}, {"b": {19, 3, 11}, "a": 1}
    assert plancache.key([[]], one) == plancache.key([[]], two) != plancache.key([[]], {"a": 1, "b": {3, 11}})
    assert plancache.key([[]], 1) != plancache.key([[]], "1") != plancache.key([[]], b"1")
    assert plancache.key([[]], (1, 2), 3) != plancache.key([[]], 1, (2, 3))
    assert plancache.key([[]], np.arange(2000)) != plancache.key([[]], np.arange(2000) + np.eye(2000)[1000])  # no "..."
    assert plancache.key([[]], jnp.float32) == plancache.key([[]], jnp.float32) != plancache.key([[]], jnp.float16)


@pytest.mark.parametrize("value", [object(), lambda: 0, [{"a": object()}], ("<f at 0x7f12ab34cd56>",)])
def test_what_only_an_address_tells_apart_has_no_key(value):
    assert plancache.key([matmul()], value) is None


def test_rules_and_compilers_without_sources_have_no_key(monkeypatch):
    assert plancache.key([matmul()]) is not None
    with monkeypatch.context() as m:
        m.setitem(RULES, "mine", lambda op, where: None)
        assert plancache.key([matmul()]) is None
    monkeypatch.setattr(plancache, "SOURCES", None)
    assert plancache.key([matmul()]) is None


def test_the_digest_covers_the_compiler(monkeypatch, tmp_path):
    package = tmp_path / "wsc"
    paths = ["layout.py", "lowering/plancache.py", "lowering/rules/dot.py", "machine/cost.py"]
    found = {}
    for changed in (None, *paths):
        for path in paths:
            (package / path).parent.mkdir(parents=True, exist_ok=True)
            (package / path).write_text("one" if path != changed else "two")
        monkeypatch.setattr(plancache, "__file__", str(package / "lowering" / "plancache.py"))
        found[changed] = plancache._digest_of_sources()
    assert len(set(found.values())) == len(found)
    monkeypatch.setattr(plancache, "__file__", str(tmp_path / "archive.zip" / "wsc" / "lowering" / "plancache.py"))
    assert plancache._digest_of_sources() is None


# The files


def test_what_is_saved_is_loaded(folder):
    assert plancache.load(KEY) is None
    plancache.save(KEY, PLAN)
    assert plancache.load(KEY) == PLAN
    assert [f.name for f in folder.iterdir()] == [f"{KEY}.json"]
    plancache.save(KEY, {"n": np.int64(3), "by": {2: 0, 10: 1}})
    assert plancache.load(KEY) == {"n": 3, "by": {"2": 0, "10": 1}}


def _edited(path: Path, **changes) -> bytes:
    return json.dumps(json.loads(path.read_text()) | changes).encode()


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: b"",
        lambda f: f.read_bytes()[:-20],
        lambda f: b"\xff\xfe\x00",
        lambda f: b"[" * 100_000,
        lambda f: b"3",
        lambda f: b"null",
        lambda f: b'{"regions": []}',
        lambda f: f.read_bytes().replace(b"4, 5", b"4, 6"),
        lambda f: _edited(f, plan={}),
        lambda f: _edited(f, digest=None),
        lambda f: _edited(f, plan=[1, 2]),
    ],
)
def test_a_damaged_or_foreign_file_is_no_plan(folder, damage):
    plancache.save(KEY, PLAN)
    path = folder / f"{KEY}.json"
    path.write_bytes(damage(path))
    assert plancache.load(KEY) is None
    plancache.save(KEY, PLAN)
    assert plancache.load(KEY) == PLAN


def test_a_file_of_another_key_is_no_plan(folder):
    plancache.save(KEY, PLAN)
    (folder / f"{KEY}.json").rename(folder / f"{'1' * 64}.json")
    assert plancache.load("1" * 64) is None


@pytest.mark.parametrize("variables", [{"WSC_PLAN_CACHE": "0"}, {"WSC_PLAN_CACHE": "", "WSC_CACHE": "0"}])
def test_switched_off(monkeypatch, tmp_path, variables):
    monkeypatch.chdir(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    plancache.save(KEY, PLAN)
    assert plancache.load(KEY) is None
    assert not any(tmp_path.iterdir())


def test_which_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("WSC_PLAN_CACHE")
    monkeypatch.setenv("WSC_CACHE", str(tmp_path / "cache"))
    plancache.save(KEY, PLAN)
    assert (tmp_path / "cache" / "plans" / f"{KEY}.json").is_file()
    monkeypatch.delenv("WSC_CACHE")
    monkeypatch.setattr(plancache.platformdirs, "user_cache_dir", lambda name: str(tmp_path / "user" / name))
    plancache.save(KEY, PLAN)
    assert (tmp_path / "user" / "wsc" / "plans" / f"{KEY}.json").is_file()
    monkeypatch.setattr(plancache.platformdirs, "user_cache_dir", lambda name: f"~/.cache/{name}")
    monkeypatch.chdir(tmp_path)
    plancache.save(KEY, PLAN)  # a user without a home
    assert plancache.load(KEY) is None
    assert not (tmp_path / "~").exists()


def test_a_folder_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WSC_PLAN_CACHE", str(tmp_path / "file" / "plans"))
    plancache.save(KEY, PLAN)
    assert plancache.load(KEY) is None
    assert compile_layers().program.stages


@pytest.mark.parametrize("call", ["replace", "unlink"])
def test_a_failed_write_leaves_nothing_and_says_nothing(monkeypatch, folder, call):
    def fail(*args, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with monkeypatch.context() as m:
        m.setattr(Path, call, fail)
        plancache.save(KEY, PLAN)
    assert plancache.load(KEY) is None
    assert len(list(folder.iterdir())) == (call == "unlink")  # even what cannot be removed is no error


def test_readers_and_writers_at_once(folder):
    """Every reader finds no plan or a whole one, whoever writes."""
    plans = [{"regions": [[n] * 5] * 200} for n in range(4)]
    found, stop = [], threading.Event()

    def write(plan):
        for _ in range(20):
            plancache.save(KEY, plan)

    def read():
        while not stop.is_set():
            found.append(plancache.load(KEY))

    plancache.save(KEY, plans[0])
    readers = [threading.Thread(target=read) for _ in range(2)]
    writers = [threading.Thread(target=write, args=(p,)) for p in plans]
    for thread in (*readers, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert found
    assert all(plan in plans for plan in found)
    assert len(list(folder.iterdir())) == 1


def test_the_oldest_go(monkeypatch, folder):
    monkeypatch.setattr(plancache, "MAX_PLANS", 5)
    folder.mkdir()
    (folder / "notes.json").write_text("the user's own")
    (folder / f"{KEY}.left").write_text("by a process that was killed")
    os.utime(folder / f"{KEY}.left", (1, 1))
    keys = [f"{n:064x}" for n in range(1, 9)]
    for n, key in enumerate(keys):
        plancache.save(key, PLAN)
        if (folder / f"{key}.json").exists():
            os.utime(folder / f"{key}.json", (100 + n, 100 + n))
    assert sorted(f.name for f in folder.iterdir()) == [*(f"{k}.json" for k in keys[-5:]), "notes.json"]


# The compiler


def figures(exe: wsc.Executable) -> tuple[str, str]:
    return exe.as_text(), json.dumps(exe.cost_analysis())


def test_a_program_is_placed_once(monkeypatch, folder):
    fresh = compile_layers()
    kept = [f.name for f in folder.iterdir()]
    assert len(kept) == 1
    with monkeypatch.context() as m:
        m.setattr(compiler, "place", lambda *args: pytest.fail("searched again"))
        again = compile_layers()
    assert figures(again) == figures(fresh)
    x = jax.random.normal(jax.random.key(0), (1, 24))
    np.testing.assert_array_equal(again(layers(), x)[0], fresh(layers(), x)[0])
    compile_layers(wafer=small(24, 24, 4096))
    assert len(list(folder.iterdir())) == 2


def test_with_the_cache_off_nothing_is_written(monkeypatch, tmp_path):
    monkeypatch.setenv("WSC_PLAN_CACHE", "0")
    compile_layers()
    assert not any(tmp_path.iterdir())


def _set(rows: list, at: int, row) -> list:
    return [*rows[:at], row, *rows[at + 1 :]]


@pytest.mark.parametrize(
    "tamper",
    [
        lambda rows: [],
        lambda rows: rows[:2],
        lambda rows: [*rows, rows[0]],
        lambda rows: None,
        lambda rows: 3,
        lambda rows: ["abcde"] * 3,
        lambda rows: _set(rows, 1, rows[1][:4]),
        lambda rows: _set(rows, 1, rows[0]),  # they overlap
        lambda rows: _set(rows, 2, [0, 23, *rows[2][2:]]),  # out of the wafer
        lambda rows: _set(rows, 0, [0, 0, 0, 0, 4]),
        lambda rows: _set(rows, 0, [0, 0, 0, -2, 4]),
        lambda rows: _set(rows, 0, [float(n) for n in rows[0]]),
        lambda rows: _set(rows, 0, [False, *rows[0][1:]]),
        lambda rows: [[0, 0, n, 1, 1] for n in range(3)],  # over its SRAM
        lambda rows: [*rows[:2], [1, 0, 0, *rows[2][3:]]],  # more wafers than were given
        lambda rows: [[0, 0, n, 12, 1] for n in (0, 8, 16)],  # apart
    ],
)
def test_a_tampered_plan_is_not_used(folder, tamper):
    options = {"wafers": 1, "wafer": small(24, 24, 1024)}
    fresh = figures(compile_layers(**options))
    (path,) = folder.iterdir()
    key = path.name.removesuffix(".json")
    plan = plancache.load(key)
    plancache.save(key, plan | {"regions": tamper(plan["regions"])})
    assert figures(compile_layers(**options)) == fresh
    assert plancache.load(key) == plan  # and a good plan is kept in its place


@pytest.mark.parametrize("bad", [{"which": 7}, {"which": "x"}, {"which": None}])
def test_a_plan_with_other_choices_than_there_are_is_not_used(folder, bad):
    model = Llama.abstract(LlamaConfig(64, 32, 48, num_hidden_layers=2, num_attention_heads=4))
    fresh = figures(wsc.compile(model, context=32, wafer=small(24, 24, 8192)))
    (path,) = folder.iterdir()
    key = path.name.removesuffix(".json")
    plan = plancache.load(key)
    plancache.save(key, plan | bad)
    assert figures(wsc.compile(model, context=32, wafer=small(24, 24, 8192))) == fresh


def test_a_kept_plan_of_another_grid_is_not_used(folder):
    fresh = compile_layers(grid=(8, 8))
    (path,) = folder.iterdir()
    key = path.name.removesuffix(".json")
    plancache.save(key, plancache.load(key) | {"regions": [[0, 0, x, 6, 6] for x in (0, 6, 12)]})
    assert figures(compile_layers(grid=(8, 8))) == figures(fresh)


def test_errors_of_a_fresh_plan_are_the_users(folder):
    def build(plan):
        raise FitError(f"plan {plan['n']}")

    plancache.save(KEY, {"n": 1})
    with pytest.raises(FitError, match="plan 2"):
        plancache.cached(KEY, lambda: {"n": 2}, build)
    assert plancache.load(KEY) == {"n": 1}  # what cannot be built is not kept
    with pytest.raises(FitError, match="does not fit"):
        compile_layers(wafers=1, wafer=small(4, 4, 1024))
