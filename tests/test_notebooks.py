"""Notebooks run from top to bottom, and each is the same as the script beside it."""

import asyncio
import re
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def read(path: Path):
    nbformat = pytest.importorskip("nbformat", reason="reading a notebook needs nbformat: pip install 'wsc[test]'")
    return nbformat.read(path, as_version=4)


def cells_of_script(text: str) -> list[tuple[str, str]]:
    """(kind, source) of each cell of a script in percent format."""
    body = re.sub(r"\A# ---\n.*?\n# ---\n", "", text, flags=re.DOTALL)
    cells = []
    for marker, source in re.findall(r"^# %%(.*)\n((?:(?!# %%).*\n?)*)", body, re.MULTILINE):
        markdown = "[markdown]" in marker
        lines = [re.sub(r"^# ?", "", line) if markdown else line for line in source.strip().splitlines()]
        cells.append(("markdown" if markdown else "code", "\n".join(lines)))
    return cells


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_script_beside_it_has_the_same_cells(path):
    found = [(c.cell_type, c.source.strip()) for c in read(path).cells]
    assert found == cells_of_script(path.with_suffix(".py").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of the kernel's own machinery
def test_runs_without_error(path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="running a notebook needs nbclient: pip install 'wsc[test]'")
    pytest.importorskip("ipykernel", reason="running a notebook needs ipykernel: pip install 'wsc[test]'")
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    # The kernel is this Python, whatever is registered on the computer under the name "python3".
    monkeypatch.setattr(
        AsyncKernelManager,
        "kernel_spec",
        KernelSpec(argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], language="python"),
    )
    notebook = read(path)
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    )
    asyncio.run(client.async_execute())  # raises on an error output
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    assert outputs
    assert not [o for o in outputs if o.output_type == "error"]
