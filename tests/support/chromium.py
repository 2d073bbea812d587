"""A headless Chromium, driven over its DevTools protocol.

The browser is the machine's own (Debian's package `chromium`).
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--remote-debugging-port=0",
)  # fmt: skip
Json = dict[str, Any]


def find() -> str | None:
    """The browser's path, None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class CallFailedError(Exception):
    """The browser could not do what it was asked; the message says why."""


class Page:
    """One tab. `events` has all that the browser told of it, by method."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = count(1)
        self._answers: dict[int, asyncio.Future[Json]] = {}
        self._session: str | None = None
        self.events: list[tuple[str, Json]] = []

    async def listen(self) -> None:
        """Read what the browser says, until it ends."""
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                self._answers.pop(said["id"]).set_result(said)
            else:
                self.events.append((said["method"], said["params"]))

    async def call(self, method: str, **params: Any) -> Json:
        """Call a method of the protocol."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        request = {"id": number, "method": method, "params": params}
        if self._session is not None:
            request["sessionId"] = self._session
        await self._socket.send_json(request)
        said = await answer
        if "error" in said:
            raise CallFailedError(f"{method}: {said['error']['message']}")
        result: Json = said["result"]
        return result

    async def open(self) -> None:
        """Make the tab, and have it told what goes wrong there."""
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Accessibility"):
            await self.call(f"{domain}.enable")

    async def go(self, url: str) -> None:
        """Load a page."""
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def run(self, script: str) -> Any:
        """The value of an expression there; a promise is waited for."""
        said = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until an expression there is true, in the page that is there then."""
        later = "new Promise((go) => setTimeout(go, 20))"
        while True:
            try:
                if await self.run(f"{later}.then(() => Boolean({condition}))"):
                    return
            except CallFailedError as error:
                # The page that was asked has made room for another.
                if not re.search(r"navigated|context", str(error)):
                    raise

    async def press(self, key: str, code: int, text: str = "") -> None:
        """Press a key and let it go."""
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key,
                windowsVirtualKeyCode=code, text=text if kind == "keyDown" else "",
            )  # fmt: skip

    def problems(self) -> list[Json]:
        """What went wrong there: exceptions, errors of the console, what a policy has blocked."""
        return [
            params
            for method, params in self.events
            if method == "Runtime.exceptionThrown"
            or (method == "Log.entryAdded" and params["entry"]["level"] == "error")
            or (method == "Runtime.consoleAPICalled" and params["type"] == "error")
        ]

    def asked(self) -> set[str]:
        """The URLs that were asked for."""
        return {
            params["request"]["url"]
            for method, params in self.events
            if method == "Network.requestWillBeSent"
        }


@asynccontextmanager
async def browsing(folder: Path) -> AsyncIterator[Page]:
    """A tab of a browser of its own, whose profile is in `folder`."""
    path = find()
    assert path is not None, "there is no browser"
    browser = await asyncio.create_subprocess_exec(
        path, *FLAGS, f"--user-data-dir={folder}", "about:blank",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert browser.stderr is not None
        while not (told := re.search(rb"listening on (ws://\S+)", await browser.stderr.readline())):
            assert browser.returncode is None, "the browser has ended"
        rest = asyncio.create_task(browser.stderr.read())
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(told[1].decode(), max_msg_size=0) as socket,
        ):
            page = Page(socket)
            listening = asyncio.create_task(page.listen())
            await page.open()
            yield page
            await page.call("Browser.close")  # with the processes that it has started
            await browser.wait()
            await listening
            await rest
    finally:
        if browser.returncode is None:
            browser.kill()
        await browser.wait()
