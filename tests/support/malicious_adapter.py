"""The zoo: hostile and broken adapters of both formats, each with the error that refuses it.

For a server under test: `build_originals(root)` writes a tiny base and sound adapters of it, and
`CORPUS[name].build(root, directory)` writes a hostile one that a server of this base must refuse with
`CORPUS[name].error.code`, whether it reads the directory itself or a copy that the store staged.
"""

from __future__ import annotations

from malicious_case import KINDS, Case, build_originals
from malicious_config import CONFIGS
from malicious_file import FILES
from malicious_tensor import POISONED, TENSORS

__all__ = ["CORPUS", "KINDS", "POISONED", "Case", "build_originals"]

CORPUS: dict[str, Case] = FILES | CONFIGS | TENSORS | POISONED
"""By name; only those of `POISONED` need their data read to be refused."""
