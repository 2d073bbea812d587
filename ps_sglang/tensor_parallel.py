"""Between which sizes of tensor parallelism pages are handed over.

Each rank of a worker has a part of the KV heads, so workers of other sizes cut a page otherwise.
"""

from __future__ import annotations


def handoff_problem(backend: str, prefill: int, decode: int) -> str | None:
    """Why a decode worker of one `--tp-size` gets no pages from a prefill worker of another.

    None if it does, by this transfer backend: Mooncake and NIXL divide a page between ranks.
    """
    if prefill == decode:
        return None
    if backend == "zmq":
        return (
            "transfer backend zmq hands whole pages from rank to rank: give both roles the same "
            "--tp-size, or use mooncake or nixl"
        )
    if max(prefill, decode) % min(prefill, decode):
        # SGLang 0.5.23 would look for ranks that do not exist.
        return f"transfer backend {backend} needs one --tp-size to be a multiple of the other"
    return None
