"""Adapters as files: from untrusted bytes in either checkpoint format to one canonical form.

Runs in: API process | GPU worker.
"""

from shadow_runtime.artifact.backbone_spec import FAMILIES, base_geometry
from shadow_runtime.artifact.canonical import CanonicalAdapter
from shadow_runtime.artifact.reader import load_adapter

__all__ = ["FAMILIES", "CanonicalAdapter", "base_geometry", "load_adapter"]
