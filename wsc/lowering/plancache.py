"""Plans kept on disk: what the search for a placement found, under a hash of all it was searched for.

A plan is a JSON object, and only ever a hint: a kept one is built and checked like a fresh one, and whatever is wrong
with it, or with the folder it lies in, a new one is made.

The folder is $WSC_PLAN_CACHE, or else `plans` in that of the fetched models ($WSC_CACHE, or the cache folder of the
user); 0 in the one, or in the other alone, keeps nothing.
"""

import contextlib
import dataclasses
import enum
import hashlib
import json
import operator
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import platformdirs

from wsc.lowering.place import Goal
from wsc.lowering.plan import Stage
from wsc.lowering.rules import RULES
from wsc.program import Region

MAX_PLANS = 2_000  # kept at a time, of a few KB each; the oldest go
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{5,}")  # what `repr` says of an object by default: other in every process
_PLAIN = (type(None), bool, int, float, complex, str, bytes)

Built = TypeVar("Built")


def _digest_of_sources() -> str | None:
    """What tells one compiler from another: the sources of all that decides on plans. None where they are not files."""
    package = Path(__file__).parents[1]
    rooms = [package.glob("*.py"), *((package / room).rglob("*.py") for room in ("lowering", "machine"))]
    digest = hashlib.sha256()
    try:
        for path in sorted(path for room in rooms for path in room):
            digest.update(f"{path.relative_to(package).as_posix()} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
    except OSError:
        return None
    return digest.hexdigest() if Path(__file__).is_file() else None


SOURCES = _digest_of_sources()  # as they were when they were imported, not as they may be by the first compile


def pack(regions: Sequence[Region]) -> list[list[int]]:
    """Regions as JSON: [wafer, y, x, height, width] of each.

    >>> pack([Region(0, 0, 96, 96, 36)])
    [[0, 0, 96, 96, 36]]
    """
    return [[operator.index(n) for n in dataclasses.astuple(r)] for r in regions]


def unpack(rows: Any, wafers: int | None, goal: Goal) -> list[Region]:
    """The regions that `pack` wrote, on at most `wafers` wafers and as the `goal` has it, where it says how.

    Raises ValueError for anything else: a plan may come from anywhere.

    >>> unpack([[0, 0, 96, 96, 36]], wafers=1, goal=Goal())
    [Region(wafer=0, y=0, x=96, height=96, width=36)]
    """
    for row in rows:
        if len(row) != 5 or any(type(n) is not int for n in row) or min(row) < 0 or min(row[3:]) < 1:
            raise ValueError(f"{row} is no region")
    regions = [Region(*row) for row in rows]
    if wafers is not None and any(r.wafer >= wafers for r in regions):
        raise ValueError(f"a region is on a wafer that is not among the {wafers}")
    if goal.grid is not None and any((r.height, r.width) != tuple(goal.grid) for r in regions):
        raise ValueError(f"a region is not of {goal.grid} PEs")
    if any((r.wafer, r.y) < goal.start for r in regions):
        raise ValueError(f"a region begins before {goal.start}")
    return regions


def cached(key: str | None, search: Callable[[], dict], build: Callable[[dict], Built]) -> Built:
    """`build` of the plan kept under `key`, or else of the one that `search` finds, which is kept then.

    `build` raises on a plan that is not to be used; what it raises on a fresh one is the caller's.

    >>> cached(None, search=lambda: {"height": 3}, build=lambda plan: plan["height"] * 2)  # no key: nothing is kept
    6
    """
    kept = load(key)
    if kept is not None:
        with contextlib.suppress(Exception):  # a kept plan is a hint: a bug that is not its fault shows again below
            return build(kept)
    plan = search()
    built = build(plan)
    save(key, plan)
    return built


def key(programs: Sequence[Sequence[Stage]], *options: Any) -> str | None:
    """A hash, equal in every process, of the compiler, the stages of each program and the options; None when there is
    none: a rule of the user's own, or a parameter that is told from another by its address only.

    >>> key([[]], 1, "a") == key([[]], 1, "a") != key([[]], 1, "b")
    True
    >>> key([[]], object()) is None
    True
    """
    if SOURCES is None or not all(rule.__module__.startswith("wsc.") for rule in RULES.values()):
        return None
    text = "\n".join([SOURCES, *map(_text, options), *(line for p in programs for line in _lines(p))])
    return None if _ADDRESS.search(text) else hashlib.sha256(text.encode()).hexdigest()


def load(key: str | None) -> dict | None:
    """The plan kept under `key`; None when there is none that can be read, or what is there is not it."""
    folder = _folder()
    if folder is None or key is None:
        return None
    try:
        kept = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
        plan = kept["plan"]
        whole = kept["digest"] == _digest(key, json.dumps(plan, sort_keys=True))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return plan if whole and isinstance(plan, dict) else None


def save(key: str | None, plan: dict) -> None:
    """Keep a plan, a JSON object, under `key`. Nothing is said when that cannot be done: a full disk, no rights."""
    folder = _folder()
    if folder is None or key is None:
        return
    as_read = json.loads(json.dumps(plan, default=operator.index))  # of numpy's whole numbers too
    text = json.dumps(as_read, sort_keys=True)
    part = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Each process writes a file of its own; the last rename wins, all are whole.
        with tempfile.NamedTemporaryFile("w", dir=folder, prefix=f"{key}.", delete=False, encoding="utf-8") as out:
            part = Path(out.name)
            out.write(f'{{"digest": "{_digest(key, text)}", "plan": {text}}}\n')
        part.replace(folder / f"{key}.json")
        _prune(folder)
    except OSError:
        with contextlib.suppress(OSError):
            if part is not None:
                part.unlink(missing_ok=True)


def _folder() -> Path | None:
    own, shared = os.environ.get("WSC_PLAN_CACHE"), os.environ.get("WSC_CACHE")
    if (own or shared) == "0":
        return None
    folder = Path(own) if own else Path(shared or platformdirs.user_cache_dir("wsc")) / "plans"
    return None if folder.parts[0] == "~" else folder  # a user without a home


def _digest(key: str, text: str) -> str:
    return hashlib.sha256(f"{key} {text}".encode()).hexdigest()


def _prune(folder: Path) -> None:
    """Remove the oldest files over `MAX_PLANS`, those that killed processes left among them."""
    files = list(folder.glob("[0-9a-f]" * 64 + ".*"))
    if len(files) > MAX_PLANS:
        for path in sorted(files, key=lambda f: f.stat().st_mtime_ns)[:-MAX_PLANS]:
            path.unlink(missing_ok=True)


def _lines(stages: Sequence[Stage]):
    """Every distinct template once, then each stage as the number of its own and where its inputs come from."""
    numbers: dict[tuple, int] = {}
    made_in = {v: (i, n) for i, stage in enumerate(stages) for n, v in enumerate(stage.exports)}
    for stage in stages:
        if stage.template not in numbers:
            numbers[stage.template] = len(numbers)
            yield _text(stage.template)
            # A template leaves out which part of an array a slice takes.
            parts = [(e.params["start_indices"], e.params["limit_indices"]) for e in stage.eqns if _is_slice(e)]
            yield _text(parts)
        yield f"{numbers[stage.template]} {[made_in.get(v) for v in stage.entries]}"
    yield "end"


def _is_slice(eqn: Any) -> bool:
    return eqn.primitive.name == "slice"


def _text(value: Any) -> str:
    """A text that tells a value from others, independent of addresses, of hashes and of the order of dicts and sets;
    an address in it tells that there is none."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if type(value) in _PLAIN:
        return repr(value)
    if isinstance(value, enum.Enum):
        return f"{kind}.{value.name}"
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, np.dtype):
        return f"dtype {value}"
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        array = np.asarray(value)
        return f"array {array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
    if isinstance(value, tuple | list):
        return f"{kind}({', '.join(map(_text, value))})"
    if isinstance(value, set | frozenset):
        return f"{kind}({', '.join(sorted(map(_text, value)))})"
    if isinstance(value, dict):
        return f"{kind}({', '.join(sorted(f'{_text(k)}: {_text(v)}' for k, v in value.items()))})"
    if dataclasses.is_dataclass(value):
        return f"{kind}({', '.join(_text(getattr(value, f.name)) for f in dataclasses.fields(value))})"
    return f"{kind} {value!r}"
