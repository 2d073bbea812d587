"""The platform class behind `ps_sglang.engine.platform` (imports SGLang)."""

from __future__ import annotations

from typing import Any

from ps_sglang.engine.compat.platform import (
    CpuDeviceMixin,
    PlatformCapabilities,
    PlatformEnum,
    SRTPlatform,
)
from ps_sglang.engine.shared_weights import share


class PortableCpuPlatform(CpuDeviceMixin, SRTPlatform):  # type: ignore[misc]
    """Native PyTorch forwards on the CPU, no Triton, no graph capture."""

    _enum = PlatformEnum.OOT
    device_name = "cpu"
    device_type = "cpu"
    capabilities = PlatformCapabilities()

    def is_pin_memory_available(self, device: object = None) -> bool:
        """Pinned memory is a CUDA notion; there is nothing to pin for."""
        return False

    def get_default_attention_backend(self) -> str:
        """SGLang's scaled-dot-product backend, the only one without device kernels."""
        return "torch_native"

    def post_load_model(self, model: Any) -> None:
        """Once its weights are loaded: workers of one model hold them once."""
        share(model)

    def get_kv_pool_cls(self, *, kind: str) -> type | None:
        """A pool that costs memory as it fills; the other kinds need device kernels anyway."""
        if kind != "mha":
            return None
        # SGLang's pools cannot be imported while SGLang resolves its platform.
        from ps_sglang.engine.kv_pool import LazyKVPool

        return LazyKVPool
