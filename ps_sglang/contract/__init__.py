"""Who may decode from whose cache: fingerprints, manifests, the checks of decoders.

Reads files only; imports neither torch, transformers nor sglang.
"""

from __future__ import annotations

from ps_sglang.contract.adapter import AdapterLimits, check_adapter, compare_adapter
from ps_sglang.contract.adapter_files import (
    AdapterConfig,
    AdapterFiles,
    adapter_digest,
    is_adapter,
    read_adapter_config,
)
from ps_sglang.contract.check import DecoderReport, check_cluster, trained_on
from ps_sglang.contract.fingerprint import base_fingerprint, weights_digest
from ps_sglang.contract.manifest import MANIFEST_FILE, Manifest, read_manifest, write_manifest
from ps_sglang.contract.replacement import check_replacement, model_facts

__all__ = [
    "MANIFEST_FILE",
    "AdapterConfig",
    "AdapterFiles",
    "AdapterLimits",
    "DecoderReport",
    "Manifest",
    "adapter_digest",
    "base_fingerprint",
    "check_adapter",
    "check_cluster",
    "check_replacement",
    "compare_adapter",
    "is_adapter",
    "model_facts",
    "read_adapter_config",
    "read_manifest",
    "trained_on",
    "weights_digest",
    "write_manifest",
]
