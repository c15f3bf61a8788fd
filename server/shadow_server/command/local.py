"""What commands ask of the runtime that is installed here, without starting an engine.

Runs in: the command's own process. Beside `engine` the only module that imports shadow_runtime, and only when asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

Format = Literal["paper", "peft"]


def check_engine_version() -> str:
    """Return the installed vLLM's version.

    Raises:
        ValueError: there is none, or it is outside of the supported range; one sentence that says what to install.
    """
    from shadow_runtime.errors import UnsupportedStackError
    from shadow_runtime.vllm_bridge.version import check_version

    try:
        return check_version()
    except UnsupportedStackError as error:
        raise ValueError(str(error)) from None


class RefusedError(Exception):
    """The runtime refuses; one sentence.

    Attributes:
        code: of the table of errors.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def convert_adapter(
    source: Path, target: Path, target_format: Format, base: str, backbone_config: Path | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write an adapter in another format, see `shadow_runtime.artifact.conversion`; imports torch.

    Args:
        source: its folder.
        target: a new folder.
        target_format: of the new checkpoint.
        base: the base model that it is for, as `serve` takes it; only its config is read.
        backbone_config: of an explicit shadow backbone that lies elsewhere.

    Returns:
        The manifests of what was read and of what was written.

    Raises:
        RefusedError: either is not valid, or the format cannot compute the adapter.
    """
    from shadow_runtime.artifact import base_geometry, conversion
    from shadow_runtime.errors import ShadowError

    try:
        geometry = base_geometry(_base_config(base))
        done = conversion.convert_adapter(
            source, target, geometry, target_format, backbone_config=backbone_config
        )
    except ShadowError as error:
        raise RefusedError(error.code, str(error)) from None
    return done.source.to_dict(), done.target.to_dict()


def _base_config(base: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(base)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise RefusedError(
            "config_invalid", f"the base model {base!r} cannot be read: {reason}"
        ) from None
