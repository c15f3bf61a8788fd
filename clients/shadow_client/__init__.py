"""Client of a ShadowServe server. Imports neither the runtime nor torch, so that it loads in milliseconds."""

__version__ = "0.1.0"

__all__ = ["__version__"]
