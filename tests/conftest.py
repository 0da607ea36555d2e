"""Shared by all tests: figures of the helpers are asserted with full reports; no test meets the user's plans."""

import os
import tempfile

import pytest

pytest.register_assert_rewrite("helpers")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--programs", type=int, default=80, help="how many drawn programs tests/generated tries")
    parser.addoption("--programs-from", type=int, default=0, help="the first of them; others are other programs")


def pytest_configure(config: pytest.Config) -> None:
    """Plans are kept in a folder of this run's own, by the processes that tests start too."""
    folder = tempfile.TemporaryDirectory(prefix="wsc-plans-")
    os.environ["WSC_PLAN_CACHE"] = folder.name
    config.add_cleanup(folder.cleanup)
