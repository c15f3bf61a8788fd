"""The dashboards."""

from typing import Any


def dashboards() -> dict[str, Any]:
    """Return the dashboards by name."""
    return {}
