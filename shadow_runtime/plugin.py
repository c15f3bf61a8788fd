"""Entry point of the vLLM plugin.

Runs in: API process | engine core | GPU worker, possibly several times in each.
"""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


def register() -> None:
    """Register the shadow-capable classes under the in-tree architecture names; idempotent and light.

    An engine without `additional_config["shadow"]` is not changed by it. On an unsupported vLLM nothing is registered
    and the reason is logged: other users of that installation are not to be broken by our presence, and starting a
    server of ours refuses with the same message.
    """
    from shadow_runtime.errors import UnsupportedStackError
    from shadow_runtime.vllm_bridge.version import check_version

    try:
        check_version()
    except UnsupportedStackError as error:
        logger.error("shadow_runtime is inactive: %s", error)
        return
    from shadow_runtime.vllm_bridge.architecture import ARCHITECTURES
    from shadow_runtime.vllm_bridge.model_registration import register_text_decoder

    for name in ARCHITECTURES:
        register_text_decoder(name)
