"""What an adapter may be called.

Runs in: API process.
"""

from __future__ import annotations

import re

# Neither ':' (`base:adapter` in a request's model) nor '@' (engine keys) nor '/' can appear, so a
# name is safe in a URL segment, a header and a metric label, and never equals those spellings.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def is_adapter_name(text: str) -> bool:
    """Return whether `text` is 1 to 128 of `A-Za-z0-9._-`, the first a letter or digit."""
    return _NAME.fullmatch(text) is not None
