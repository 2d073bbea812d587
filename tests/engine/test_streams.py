"""Who waits for a step that still runs, on a device that only notes what is asked of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ps_sglang.engine.compat.srt import FAKE_BOOTSTRAP_HOST
from ps_sglang.engine.handoff import streams
from ps_sglang.engine.handoff.decode import send_kv_metadata
from ps_sglang.engine.handoff.registration import batch_register
from ps_sglang.engine.request_state import begin_handoff


class Device:
    """Notes what happens to its events, beside what else is appended to `seen`."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def Event(self) -> Any:
        return SimpleNamespace(
            record=lambda stream: self.seen.append(f"after {stream}"),
            synchronize=lambda: self.seen.append("waited"),
        )


def scheduler(device: Device, *, overlap: bool = True, name: str = "xpu") -> Any:
    return SimpleNamespace(
        device_module=device, forward_stream="steps", enable_overlap=overlap, device=name
    )


@pytest.mark.parametrize(
    ("overlap", "pages", "expected"),
    [
        (True, [4, 5], ["after steps", "waited", "asked"]),
        (True, [], ["asked"]),
        (False, [4, 5], ["asked"]),
    ],
)
def test_pages_are_asked_for_when_no_step_can_write_them(
    overlap: bool, pages: list[int], expected: list[str]
) -> None:
    device = Device()
    queue = SimpleNamespace(scheduler=scheduler(device, overlap=overlap))
    req = SimpleNamespace(origin_input_ids=[1, 2, 3], bootstrap_host=FAKE_BOOTSTRAP_HOST)
    begin_handoff(req, 2)
    asked = SimpleNamespace(req=req, kv_receiver=None)
    send_kv_metadata(lambda *_, **__: device.seen.append("asked"), queue, asked, pages, 1)
    assert device.seen == expected


@pytest.mark.parametrize(
    ("name", "told", "expected"),
    [("cuda", True, ["sent"]), ("cpu", False, ["after steps", "waited", "sent"])],
)
def test_no_event_of_cuda_is_used_on_another_device(
    name: str, told: bool, expected: list[str]
) -> None:
    device = Device()
    there = scheduler(device, name=name)

    def stock(one: Any, _req: Any, _allow: bool) -> None:
        assert one.enable_overlap is told
        device.seen.append("sent")

    streams.maybe_send_cached_prefix_chunk(stock, there, None)
    assert there.enable_overlap is True
    assert device.seen == expected


@pytest.mark.parametrize(("backend", "waits"), [("nixl", True), ("mooncake", False)])
def test_pages_are_waited_for_where_the_backend_does_not(
    monkeypatch: pytest.MonkeyPatch, backend: str, waits: bool
) -> None:
    device = Device()
    settings = SimpleNamespace(disaggregation_transfer_backend=backend)
    monkeypatch.setattr(streams, "get_disagg", lambda: settings)
    sender = SimpleNamespace(_early_send_wait_event=device.Event())
    streams.send(sender, [1])
    assert device.seen == ["waited"] * waits


def test_memory_that_cannot_be_registered_ends_the_start() -> None:
    assert batch_register(lambda *_: 0, None, [1], [10]) == 0
    with pytest.raises(RuntimeError, match=r"cannot register 2 buffers of 3\.0 GB .*\(code -1\)"):
        batch_register(lambda *_: -1, None, [1, 2], [10**9, 2 * 10**9])
