"""The page in a real browser: it shows what happens, asks decoders, and runs nothing foreign."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.gateway.keys_setup import add_key, as_, secret
from tests.gateway.live_setup import Shown, showing
from tests.support import chromium
from tests.support.chromium import Page, browsing
from tests.support.standin_engine import COMPLETIONS

pytestmark = pytest.mark.skipif(
    chromium.find() is None,
    reason=f"no browser: none of {', '.join(chromium.NAMES)} is installed",
)

EVIL = "<img src=x onerror='window.stolen = 1'>"


@pytest.fixture
async def shown(tmp_path: Path) -> AsyncIterator[Shown]:
    async with showing(tmp_path) as one:
        yield one


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    async with browsing(tmp_path / "profile") as one:
        yield one


async def text(page: Page, selector: str) -> list[str]:
    listed: list[str] = await page.run(
        f"[...document.querySelectorAll({json.dumps(selector)})].map(one => one.innerText)"
    )
    return listed


async def test_it_shows_the_cluster_at_work(shown: Shown, page: Page) -> None:
    """Workers, a request that runs, the tree; what clients send stays text."""
    tokens = await shown.store(shown.setup.prefill, EVIL)
    await shown.turn("a", EVIL + " x", len(shown.tokens(EVIL + " x")) - 1)
    await shown.turn("b", EVIL + " y", 0)
    decode = shown.setup.decode()
    before = len(decode.requests)
    decode.plan.step = asyncio.Semaphore(1)
    body = {"model": "a", "prompt": "x", "stream": True, "session_id": EVIL}
    asking = asyncio.create_task(shown.setup.http.post(shown.setup.url + COMPLETIONS, json=body))
    await decode.saw(before + 1)
    await page.go(shown.setup.url)
    await page.until("document.querySelectorAll('#requests li').length === 1")
    assert await text(page, "#workers h3") == ["prefill-0", "a-0", "b-0"]
    assert await text(page, "#requests .session") == [EVIL]
    assert await text(page, "#tree .excerpt") == [EVIL]
    assert (await text(page, "#tree summary .users .tag")) == ["a 1\u00d7", "b 1\u00d7"]
    assert await text(page, "#tree summary .saved") == [f"saved {tokens}"]
    decode.plan.step.release()
    decode.plan.step.release()
    async with await asking as response:
        await response.read()
    await page.until("document.querySelectorAll('#requests li').length === 0")
    assert await page.run("document.querySelectorAll('img').length") == 0
    assert await page.run("window.stolen ?? null") is None
    assert page.problems() == []
    assert all(url.startswith(shown.setup.url) for url in page.asked())


async def test_it_asks_decoders_side_by_side(shown: Shown, page: Page) -> None:
    await page.go(shown.setup.url)
    await page.until("document.querySelectorAll('#choices input').length === 2")
    await page.run(
        "context.value = 'one'; question.value = 'two three'; most.value = 3; send.click()"
    )
    await page.until("document.querySelectorAll('#answers article:not([aria-busy])').length === 2")
    assert await text(page, "#answers h3") == ["a", "b"]
    answers = await text(page, "#answers .answer")
    assert [one.split() for one in answers] == [
        [f"{name}-x-{number}" for number in range(3)] for name in "ab"
    ]
    first, _, prompt, cached = await text(page, "#answers article:first-child dd")
    assert first.endswith("ms") or first.endswith("s")
    assert (prompt, cached) == ("3", "1")
    bodies = [shown.setup.decode(name).requests[0] for name in "ab"]
    assert bodies[0]["messages"] == bodies[1]["messages"]
    assert bodies[0]["messages"][0]["content"] == "one"
    assert "a: first token after" in (await text(page, "#try-status"))[0]
    # One that fails says so, and leaves the others alone.
    shown.setup.decode("b").plan.refuse = (400, {"message": EVIL})
    await page.run("send.click()")
    await page.until("document.querySelector('#answers .problem')")
    await page.until("document.querySelectorAll('#answers article:not([aria-busy])').length === 2")
    assert EVIL in (await text(page, "#answers .problem"))[0]
    assert await page.run("document.querySelectorAll('img').length") == 0


async def test_it_asks_for_a_key_where_one_is_needed(tmp_path: Path, page: Page) -> None:
    for name in ("alice", "ops"):
        add_key(tmp_path / "keys", name)
    async with showing(tmp_path, as_("ops"), api_keys=str(tmp_path / "keys")) as shown:
        await page.go(shown.setup.url)
        await page.until("document.activeElement.id === 'key-value'")
        await give_key(page, "wrong")
        await page.until("document.querySelector('#key p').innerText.includes('none of this')")
        # A user may ask, but sees nothing of others.
        await give_key(page, secret("alice"))
        await page.until("document.querySelectorAll('#choices input').length === 2")
        assert await page.run("document.querySelector('#live').hidden")
        assert "needs an admin's" in (await text(page, "#status"))[0]
        await page.run("most.value = 3; send.click()")
        await page.until("document.querySelectorAll('#answers .answer:not(:empty)').length === 2")
        await page.run("forget.click()")
        await page.until("document.activeElement.id === 'key-value'")
        await give_key(page, secret("ops"))
        await page.until("document.querySelectorAll('#workers h3').length === 3")
        assert await page.run("localStorage.length + document.cookie.length") == 0


async def give_key(page: Page, key: str) -> None:
    await page.run(f"document.querySelector('#key-value').value = {json.dumps(key)}")
    await page.run("document.querySelector('#key button').click()")


async def test_it_works_by_keyboard_and_is_read_out(shown: Shown, page: Page) -> None:
    await shown.store(shown.setup.prefill, "one")
    await page.go(shown.setup.url)
    await page.until("document.querySelectorAll('#tree summary').length === 1")
    reached = [""]
    while reached[-1] != "send":
        await page.press("Tab", 9)
        reached.append(
            await page.run("document.activeElement.id || document.activeElement.tagName")
        )
        if reached[-1] == "SUMMARY":
            await page.press("Enter", 13, "\r")
            assert await page.run("document.activeElement.parentElement.open") is False
    assert [one for one in reached if one in ("pause", "SUMMARY", "context", "most", "send")] == [
        "pause", "SUMMARY", "context", "most", "send",
    ]  # fmt: skip
    # It is still closed, and still has the focus, when new data has come.
    await page.run("document.querySelector('summary').focus()")
    stamp = await page.run("performance.now()")
    asked = f"performance.getEntriesByName('{shown.setup.url}/v1/live')"
    await page.until(f"{asked}.some((one) => one.startTime > {stamp})")
    assert await page.run("document.activeElement.tagName") == "SUMMARY"
    nodes = (await page.call("Accessibility.getFullAXTree"))["nodes"]
    controls = ("button", "textbox", "checkbox", "spinbutton", "link", "DisclosureTriangle")
    nameless = [
        node
        for node in nodes
        if node.get("role", {}).get("value") in controls and not node["name"]["value"]
    ]
    assert nameless == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_fits_a_phone(shown: Shown, page: Page, scheme: str) -> None:
    await shown.store(shown.setup.prefill, "The system asks the user a question")
    await page.call(
        "Emulation.setDeviceMetricsOverride",
        width=360, height=740, deviceScaleFactor=1, mobile=True,
    )  # fmt: skip
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    await page.call("Emulation.setEmulatedMedia", features=features)
    await page.go(shown.setup.url)
    await page.until("document.querySelectorAll('#tree summary').length === 1")
    assert await page.run("document.documentElement.scrollWidth") == 360
    ratio = await page.run(_CONTRAST)
    assert ratio >= 4.5


# The lowest contrast of any text with what is behind it, by WCAG's formula.
_CONTRAST = """(() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((one) => one / 255)
    .map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4))
    .reduce((sum, one, place) => sum + one * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = parse(getComputedStyle(one).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const ratios = [...document.querySelectorAll('body *')]
    .filter((one) => one.checkVisibility() && !one.disabled)
    .filter((one) => [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
    .map((one) => [light(parse(getComputedStyle(one).color)), light(behind(one))])
    .map((pair) => pair.sort((a, b) => b - a))
    .map(([high, low]) => (high + 0.05) / (low + 0.05));
  return Math.min(...ratios);
})()"""
