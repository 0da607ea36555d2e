"""What the README tells people to type works: its Python runs, and its install lines are the ones promised."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
SHELL = ("bash", "console", "shell", "sh")


def blocks(*languages: str) -> list[tuple[int, str]]:
    """(line of the first line, text) of the fenced blocks in these languages."""
    text = README.read_text()
    pattern = rf"^```(?:{'|'.join(languages)})[^\n]*\n(.*?)^```"
    found = re.finditer(pattern, text, re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, m.start(1)) + 1, m.group(1)) for m in found]


def test_python_blocks_run():
    """In order, in one namespace; a block below a line `# needs network` is left out."""
    ran, namespace = 0, {"__name__": "readme"}
    for line, source in blocks("python", "py"):
        if re.search(r"^# needs network", source, re.MULTILINE):
            continue
        # Empty lines before the source, so that a traceback has the README's line numbers.
        exec(compile("\n" * (line - 1) + source, str(README), "exec"), namespace)
        ran += 1
    if not ran:
        pytest.skip("the README has no Python that runs without a network")


@pytest.mark.parametrize("commands", [("pip install '.[demo]'", "wsc run"), ("pip install -e '.[test]'", "pytest")])
def test_install_lines_are_there(commands):
    """Each as one line, `install && use`."""
    lines = "\n".join(text for _, text in blocks(*SHELL)).splitlines()
    assert any(" && ".join(commands) in line for line in lines), lines
