"""Bodies of the adapter routes.

Runs in: API process.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class LoadAdapter(BaseModel):
    """POST /v1/adapters."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    path: str
    backbone_config: str | None = None


class LoadLoraAdapter(BaseModel):
    """POST /v1/load_lora_adapter, with the fields that vLLM gives it."""

    model_config = ConfigDict(extra="ignore", strict=True)

    lora_name: str
    lora_path: str
    load_inplace: bool = False


class UnloadLoraAdapter(BaseModel):
    """POST /v1/unload_lora_adapter, with the fields that vLLM gives it."""

    model_config = ConfigDict(extra="ignore", strict=True)

    lora_name: str
