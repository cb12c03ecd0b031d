"""The chat page, in headless Chromium driven over its DevTools protocol."""

import asyncio
import base64
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect

from tests.server.servers import LocalServer

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def test_the_page_loads_nothing_from_elsewhere(server: LocalServer) -> None:
    page = httpx.get(f"{server.url}/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.findall(r"""(?:src|href)\s*=|https?://|@import|url\(""", page.text)


class Page:
    """One tab."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._number = 0
        self.complaints: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        request = {"id": self._number, "method": method, "params": parameters}
        await self._connection.send(json.dumps(request))
        while True:
            reply = json.loads(await self._connection.recv())
            if reply.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(str(reply["params"]))
            if reply.get("id") == self._number:
                assert "error" not in reply, reply
                result: dict[str, Any] = reply["result"]
                return result

    async def run(self, script: str) -> Any:
        result = await self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, script: str) -> None:
        for _ in range(300):
            if await self.run(script):
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"never true: {script}; the page says: {await self.text()}")

    async def text(self) -> str:
        return str(await self.run("document.body.innerText"))

    async def type(self, text: str) -> None:
        await self.call("Input.insertText", text=text)

    async def press(self, key: str, code: int) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code
            )


@asynccontextmanager
async def opened(url: str, folder: Path) -> AsyncIterator[Page]:
    assert CHROMIUM is not None
    process = subprocess.Popen(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "--window-size=900,700", "about:blank"],
        stderr=subprocess.DEVNULL,
    )
    try:
        port_file = folder / "DevToolsActivePort"
        for _ in range(200):
            if port_file.is_file() and "\n" in port_file.read_text():
                break
            await asyncio.sleep(0.1)
        port = port_file.read_text().split()[0]
        async with httpx.AsyncClient() as client:
            tabs = (await client.get(f"http://127.0.0.1:{port}/json")).json()
        [tab] = [each for each in tabs if each["type"] == "page"]
        async with connect(tab["webSocketDebuggerUrl"], max_size=None) as connection:
            page = Page(connection)
            await page.call("Runtime.enable")
            await page.call("Log.enable")
            await page.call("Page.enable")
            await page.call("Page.navigate", url=url)
            await page.until("document.readyState == 'complete'")
            yield page
    finally:
        process.terminate()
        process.wait(10)


def in_browser(server: LocalServer, folder: Path, story: Callable[[Page], Awaitable[None]]) -> None:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (apt-get install chromium): the page is not tested")

    async def tell() -> None:
        async with opened(f"{server.url}/", folder) as page:
            await story(page)
            assert page.complaints == []

    asyncio.run(tell())


def test_a_conversation_streams_stops_and_is_kept(server: LocalServer, tmp_path: Path) -> None:
    async def story(page: Page) -> None:
        await page.until("document.getElementById('model').textContent.includes('SmolLM2')")
        assert await page.run("document.activeElement.id") == "text"
        await page.run(
            "for (const [id, value] of [['temperature', '0'], ['max_tokens', '24']])"
            "{ $(id).value = value; $(id).dispatchEvent(new Event('change')); }"
        )
        await page.type("What is the capital of France?")
        await page.press("Enter", 13)
        await page.until("document.querySelectorAll('.assistant').length == 1")
        await page.until("!running")
        assert "Paris" in await page.run("document.querySelector('.assistant').innerText")
        figures = await page.run("$('figures').textContent")
        assert re.fullmatch(r"\d+ tokens, [\d.]+ tokens/s, first after \d+ ms", figures)
        assert "Paris" in await page.run("$('spoken').textContent")
        await page.call("Page.reload")
        await page.until("document.querySelectorAll('#talk li').length == 2")
        assert await page.run("$('max_tokens').value") == "24"
        await page.run("$('max_tokens').value = '800'; $('text').focus()")
        await page.type("Count from one to one thousand.")
        await page.press("Enter", 13)
        await page.until("document.querySelectorAll('.assistant').length == 2")
        await page.press("Escape", 27)
        await page.until("!running")
        assert await page.run("JSON.parse(localStorage['lite_llama.conversation']).length") == 4
        await page.run("$('new').click()")
        assert await page.run("document.querySelectorAll('#talk li').length") == 0

    in_browser(server, tmp_path, story)


def test_the_page_fits_a_phone_in_dark_and_light(server: LocalServer, tmp_path: Path) -> None:
    shots: dict[str, bytes] = {}

    async def story(page: Page) -> None:
        await page.until("document.getElementById('model').textContent.includes('SmolLM2')")
        await page.call(
            "Emulation.setDeviceMetricsOverride",
            width=360,
            height=640,
            deviceScaleFactor=2,
            mobile=True,
        )
        await page.until("innerWidth == 360 && innerHeight == 640")
        assert await page.run("document.documentElement.scrollWidth") <= 360
        await page.until("$('send').getBoundingClientRect().bottom <= 640")
        colours = set()
        for scheme in ("light", "dark"):
            feature = [{"name": "prefers-color-scheme", "value": scheme}]
            await page.call("Emulation.setEmulatedMedia", features=feature)
            colours.add(await page.run("getComputedStyle(document.body).backgroundColor"))
            shot = await page.call("Page.captureScreenshot", format="png")
            shots[scheme] = base64.b64decode(shot["data"])
        assert len(colours) == 2
        assert shots["light"] != shots["dark"]

    in_browser(server, tmp_path, story)


def test_every_control_has_a_name_and_is_reached_by_tab(
    server: LocalServer, tmp_path: Path
) -> None:
    async def story(page: Page) -> None:
        await page.call("Accessibility.enable")
        tree = (await page.call("Accessibility.getFullAXTree"))["nodes"]
        controls = [
            node
            for node in tree
            if node.get("role", {}).get("value") in ("button", "textbox", "spinbutton")
        ]
        assert len(controls) >= 3
        assert all(node["name"]["value"].strip() for node in controls)
        reached = set()
        for _ in range(8):
            await page.press("Tab", 9)
            reached.add(
                await page.run("document.activeElement.id || document.activeElement.tagName")
            )
        assert {"send", "new", "SUMMARY", "text"} <= reached

    in_browser(server, tmp_path, story)
