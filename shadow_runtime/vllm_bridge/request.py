"""How an adapter's identity travels through vLLM: inside its `LoRARequest`.

Runs in: API process (builds) | engine core (keys prefix blocks) | GPU worker (reads).

vLLM keys prefix-cache blocks by the request's name and path, compares requests by name alone and indexes everything
else by a 32-bit id. So all three are of the digest: bytes that change become another name, path and id, and a replaced
file can never meet cached keys and values of its predecessor, while two names of the same bytes share theirs. What
people call the adapter travels in `base_model_name`, which vLLM shows in lists of models only and no key holds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, urlencode

from vllm.lora.request import LoRARequest

from shadow_runtime.errors import AdapterConfigError
from shadow_runtime.types import AdapterManifest

_URI = re.compile(r"shadow://(?P<digest>sha256:[0-9a-f]{64})\?(?P<query>.*)")
_ID_BIT = 1 << 30


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """Where the bytes of a digest are.

    Attributes:
        digest: `sha256:<hex>`; what is read must have it.
        path: absolute directory.
        backbone_config: absolute path of an explicit backbone's config, or None.
    """

    digest: str
    path: str
    backbone_config: str | None = None

    @classmethod
    def of(cls, manifest: AdapterManifest) -> AdapterSource:
        """Return the source that a manifest was read from."""
        return cls(manifest.digest, manifest.path, manifest.backbone_config)

    def to_uri(self) -> str:
        """Return `shadow://sha256:<hex>?path=...`, the form in `LoRARequest.lora_path`."""
        fields = {"path": self.path}
        if self.backbone_config is not None:
            fields["config"] = self.backbone_config
        return f"shadow://{self.digest}?{urlencode(fields)}"

    @classmethod
    def from_uri(cls, uri: str) -> AdapterSource:
        """Parse `to_uri` output; raises AdapterConfigError for anything else (a plain directory has no identity)."""
        found = _URI.fullmatch(uri)
        fields = {} if found is None else parse_qs(found["query"])
        if found is None or len(fields.get("path", [])) != 1:
            raise AdapterConfigError(
                f"adapter path {uri!r} does not name a digest; build requests with shadow_runtime, not by hand"
            )
        return cls(found["digest"], fields["path"][0], fields.get("config", [None])[0])


def adapter_int_id(digest: str) -> int:
    """Return vLLM's 31-bit id of a digest; never one of the small ids that vLLM uses for its warm-up adapters."""
    return (int(digest.removeprefix("sha256:")[:8], 16) & (_ID_BIT - 1)) | _ID_BIT


def build_request(name: str, manifest: AdapterManifest) -> LoRARequest:
    """Return the vLLM request of an adapter; its `lora_name` is the digest."""
    return LoRARequest(
        lora_name=manifest.digest,
        lora_int_id=adapter_int_id(manifest.digest),
        lora_path=AdapterSource.of(manifest).to_uri(),
        base_model_name=name,
    )


def adapter_name(request: LoRARequest | None) -> str | None:
    """Return the name that `request` was built with; None for the base model."""
    return None if request is None else request.base_model_name
