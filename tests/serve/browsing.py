"""A real browser on a real server's page, and what a person sees there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.house.source import ROOT

CHROMIUM = shutil.which("chromium")
PICTURES = ROOT / "build" / "screenshots"
SECONDS = 20
PROMPT = "lito ba nusa ba mo rarara"
SETTLED = ".pane:not(.busy) .status:not(:empty)"


@contextmanager
def chromium() -> Iterator[Any]:
    """Debian's Chromium without a window; skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium here: apt install chromium")
    with playwright.sync_playwright() as driver:
        # Chromium has no sandbox for root; what it sees here is our own page.
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Visit:
    """A tab on a server's page, and what its console said."""

    def __init__(self, browser: Any, url: str, **how: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1280, "height": 900}, **how)
        self.page = self.context.new_page()
        self.page.set_default_timeout(SECONDS * 1000)
        self.url = url
        self.console: list[str] = []
        self.urls: list[str] = []
        self.page.on("console", lambda message: self.console.append(message.text))
        self.page.on("pageerror", lambda error: self.console.append(f"Uncaught {error}"))
        self.page.on("request", lambda request: self.urls.append(request.url))

    def open(self, key: str | None = None, *, keep: bool = False) -> Visit:
        """Loads the page, and gives it a key where one is needed."""
        self.page.goto(self.url)
        if key is not None:
            self.page.fill("#key", key)
            self.page.set_checked("#keep", keep)
            self.page.click("text=Use key")
        self.page.wait_for_selector(":is(#inside, #key-part):not([hidden])")
        return self

    def ask(self, prompt: str, **fields: Any) -> Visit:
        """Fills in the form and runs it to the end of both answers."""
        self.begin(prompt, **fields)
        return self.wait()

    def begin(self, prompt: str, tokens: int = 40, purpose: str | None = None) -> None:
        self.page.fill("#prompt", prompt)
        self.page.fill("#max-tokens", str(tokens))
        if purpose is not None:
            self.page.select_option("#purpose", purpose)
        self.page.click("#run")

    def wait(self) -> Visit:
        """Until both answers have ended, and what follows from them is on the page."""
        self.page.locator(SETTLED).nth(1).wait_for()
        return self.rest()

    def rest(self) -> Visit:
        """Until what was asked of the roster and of usage is on the page."""
        self.page.locator("#inside:not([aria-busy=true])").wait_for(state="attached")
        return self

    def pane(self, number: int) -> Any:
        return self.page.locator(".pane").nth(number)

    def switch(self, number: int, name: str) -> Any:
        return self.pane(number).locator(f"[data-name='{name}'] input")

    def text(self, number: int) -> str:
        """An answer without its prompt."""
        return "".join(self.pane(number).locator(".token").all_text_contents())

    def tints(self, number: int) -> list[tuple[str, str | None]]:
        """Each piece of an answer, and the expert it is tinted for."""
        found = self.pane(number).locator(".token").all()
        return [(one.text_content(), one.get_attribute("data-expert")) for one in found]

    def status(self, number: int) -> str:
        return str(self.pane(number).locator(".status").text_content())

    def error(self, number: int) -> str:
        return str(self.pane(number).locator(".error:visible").text_content())

    def shares(self, number: int) -> dict[str, str]:
        rows = self.pane(number).locator(".expert").all()
        return {
            row.get_attribute("data-name"): row.locator(".share")
            .text_content()
            .replace("\xa0", " ")
            for row in rows
        }

    def picture(self, name: str) -> Path:
        """Keeps what the page looks like now."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        self.page.evaluate("scrollTo({top: 0, behavior: 'instant'})")
        self.page.screenshot(path=PICTURES / f"{name}.png", full_page=True)
        return PICTURES / f"{name}.png"

    def complaints(self) -> list[str]:
        """What scripts and the content policy said; refusals of the server are not among it."""
        return [said for said in self.console if not said.startswith("Failed to load resource")]


def percent(share: float) -> str:
    """A share as the page writes it."""
    return f"{100 * share:.{1 if 0.0005 <= share < 0.0995 else 0}f} %"
