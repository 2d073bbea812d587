"""Who may decode from whose cache: fingerprints, manifests and the check before a launch.

Reads files only; imports neither torch, transformers nor sglang.
"""

from __future__ import annotations

from ps_sglang.contract.check import DecoderReport, check_cluster, trained_on
from ps_sglang.contract.fingerprint import base_fingerprint, weights_digest
from ps_sglang.contract.manifest import MANIFEST_FILE, Manifest, read_manifest, write_manifest
from ps_sglang.contract.replacement import check_replacement, model_facts

__all__ = [
    "MANIFEST_FILE",
    "DecoderReport",
    "Manifest",
    "base_fingerprint",
    "check_cluster",
    "check_replacement",
    "model_facts",
    "read_manifest",
    "trained_on",
    "weights_digest",
    "write_manifest",
]
