"""The launcher's fork server with stock SGLang in it: `ps_sglang.launch.fork_server`, other hooks.

    python -m benchmarks.studies.agents.stock_fork_server RUNTIME_FOLDER [CHECKPOINT_FOLDER]

Stock SGLang cannot run prefill/decode disaggregation on a machine without a GPU, and so many
servers do not fit into its memory unless they are forks. Workers of this host therefore have from
us what lies below SGLang, and nothing of what this project is about:

- the portable CPU platform with its KV pool, and backend `zmq` as the wire between two workers;
- attention on the CPU: over a prompt's new tokens only, and rows gathered fast;
- the doorbell: without it, an idle SGLang sleeps up to a second through a transfer's end;
- the launcher's fork, SGLang's flags for a CPU, thread counts.

Theirs are the scheduler, both radix caches, the whole prompt's prefill with the first token
sampled by the prefill worker, its handover, and every other step of a request.
"""

from __future__ import annotations

from typing import Any, Final

from ps_sglang.engine import hooks
from ps_sglang.engine.hooking import Hook
from ps_sglang.engine.transfer.endpoints import ZmqKVReceiver
from ps_sglang.launch import fork_server

# By the end of the hooked name; `create_sender` tells backend zmq the prompt, whole here as no
# other hook cuts it.
_KEPT: Final = (
    ".TransferBackend", ".get_kv_class", ".create_sender", ".update_status",
    ".init_idle_sleeper", ".on_idle",
)  # fmt: skip
_METADATA: Final = "._send_kv_metadata"


def send_kv_metadata(
    original: Any, queue: Any, decode_req: Any, kv_indices: Any, page_size: int,
    state_indices: Any = None, **kwargs: Any,
) -> None:  # fmt: skip
    """Around `DecodePreallocQueue._send_kv_metadata`: the whole prompt's pages are wanted."""
    if isinstance(decode_req.kv_receiver, ZmqKVReceiver):
        decode_req.kv_receiver.expect(decode_req.req.origin_input_ids)
    original(queue, decode_req, kv_indices, page_size, state_indices, **kwargs)


def stock_hooks() -> tuple[Hook, ...]:
    """What of the plugin's hooks remains."""
    kept = [hook for hook in hooks.HOOKS if hook.target.endswith(_KEPT)]
    metadata = next(hook for hook in hooks.HOOKS if hook.target.endswith(_METADATA))
    metadata_hook = Hook(metadata.target, metadata.kind, send_kv_metadata, metadata.parameters)
    return (*kept, metadata_hook)


def main() -> None:
    """As the launcher's host."""
    hooks.HOOKS = stock_hooks()
    fork_server.main()


if __name__ == "__main__":
    main()
