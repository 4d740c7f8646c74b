"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def store_path(tmp_path: Path) -> str:
    """Return a path for a store that does not exist yet."""
    return str(tmp_path / "store")
