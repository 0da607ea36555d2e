"""Shared by all tests: figures of the helpers are asserted with full reports."""

import pytest

pytest.register_assert_rewrite("helpers")
