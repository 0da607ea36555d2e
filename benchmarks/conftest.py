"""Shared by all benchmarks: programs are compiled from nothing; no plan kept by an earlier run shortens it."""

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """For the processes that benchmarks start too."""
    os.environ["WSC_PLAN_CACHE"] = "0"


def pytest_xdist_auto_num_workers(config: object) -> int:
    """One process: figures are not taken while others run."""
    return 0
