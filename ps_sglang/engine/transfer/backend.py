"""Makes `zmq` a transfer backend that SGLang selects by name, beside its own."""

from __future__ import annotations

from enum import Enum
from typing import Any, Final

import torch

from ps_sglang.engine.compat.srt import (
    KVClassType,
    TransferBackend,
    add_disagg_transfer_backend_choices,
)
from ps_sglang.engine.hooking import after, around, replace

BACKEND_NAME: Final = "zmq"

ExtendedTransferBackend = Enum(  # type: ignore[misc]
    "TransferBackend",
    {**{member.name: member.value for member in TransferBackend}, "ZMQ": BACKEND_NAME},
)
ExtendedTransferBackend.__doc__ = "Instead of `TransferBackend`: add `zmq` to its closed enum."
replace("disaggregation.utils.TransferBackend")(ExtendedTransferBackend)


@around("disaggregation.utils.get_kv_class", "transfer_backend", "class_type")
def get_kv_class(original: Any, transfer_backend: Any, class_type: KVClassType) -> type | None:
    """Around `disaggregation.utils.get_kv_class`: find the classes of backend `zmq`."""
    if transfer_backend.value != BACKEND_NAME or class_type is KVClassType.KVARGS:
        stock: Any = original(transfer_backend, class_type)
        if class_type is KVClassType.SENDER and not torch.accelerator.is_available():
            # SGLang's Mooncake sender records a CUDA event for each chunk where this is true.
            stock.supports_host_tensor_indices = False
        return stock if isinstance(stock, type) else None
    from ps_sglang.engine.transfer import endpoints, manager

    classes: dict[Any, type] = {
        KVClassType.MANAGER: manager.ZmqKVManager,
        KVClassType.SENDER: endpoints.ZmqKVSender,
        KVClassType.RECEIVER: endpoints.ZmqKVReceiver,
        KVClassType.BOOTSTRAP_SERVER: endpoints.ZmqKVBootstrapServer,
    }
    return classes[class_type]


@after("managers.scheduler.Scheduler.init_disaggregation", "self")
def init_disaggregation(_result: None, scheduler: Any) -> None:
    """After `Scheduler.init_disaggregation`: pages wait for the steps that write them."""
    queue = scheduler.disagg_prefill_bootstrap_queue or scheduler.disagg_decode_prealloc_queue
    if queue is not None and scheduler.transfer_backend.value == BACKEND_NAME:
        memory = queue.kv_manager.memory
        memory.follow(scheduler.forward_stream, scheduler.schedule_stream)


def register() -> None:
    """Accept `--disaggregation-transfer-backend zmq`."""
    add_disagg_transfer_backend_choices([BACKEND_NAME])
