"""Packages that most tests do without: where one is missing, what needs it is skipped by name."""

from importlib.util import find_spec

import pytest


def needs(*packages: str) -> pytest.MarkDecorator:
    """Skip a test where a package is not installed."""
    missing = [name for name in packages if find_spec(name) is None]
    reason = f"{', '.join(missing)}: not installed; an extra of pyproject.toml or the test says how"
    return pytest.mark.skipif(bool(missing), reason=reason)
