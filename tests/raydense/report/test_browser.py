"""The report in a real browser: Debian's Chromium, headless."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import needs_chromium, open_browser

from raydense.report.page import write_report

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    pytest.importorskip("selenium")
    with open_browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def address(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(finished, tmp_path_factory.mktemp("page") / "report.html").as_uri()


def show(browser: Any, address: str, *, width: int = 1200, scheme: str = "light") -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(address)


def test_the_console_is_silent_and_every_picture_is_there(browser: Any, address: str) -> None:
    show(browser, address)
    assert browser.get_log("browser") == []
    assert browser.title == "small · raydense report"
    sizes = browser.execute_script("return [...document.images].map(i => [i.naturalWidth, i.clientWidth])")
    assert len(sizes) == 22
    assert all(natural > 0 and shown > 40 for natural, shown in sizes)


@pytest.mark.parametrize("width", [1200, 400])
def test_every_figure_is_drawn_and_can_be_read(browser: Any, address: str, width: int) -> None:
    show(browser, address, width=width)
    found = browser.execute_script(
        """return [...document.querySelectorAll('figure')].map(f => {
            const drawing = f.querySelector('svg'), box = drawing.getBoundingClientRect();
            const scale = box.width / drawing.viewBox.baseVal.width;
            const size = text => scale * parseFloat(getComputedStyle(text).fontSize);
            const texts = [...drawing.querySelectorAll('text')].map(size);
            return [box.width, box.height, texts.length, Math.min(...texts)];
        })"""
    )
    assert len(found) == 20
    for across, height, texts, smallest in found:
        assert across > 250
        assert height > 140
        assert texts >= 4
        assert smallest >= 9.9  # pixels


def test_at_400_pixels_nothing_is_wider_than_the_screen(browser: Any, address: str) -> None:
    show(browser, address, width=400)
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 400
    outside = browser.execute_script(
        """return [...document.querySelectorAll('body *')]
            .filter(e => !e.closest('.scroll, pre, svg') && e.getBoundingClientRect().right > 400)
            .map(e => e.outerHTML.slice(0, 80))"""
    )
    assert outside == []


def test_light_and_dark_are_legible(browser: Any, address: str) -> None:
    """Contrast of text on its ground (WCAG): at least 4.5, in the page and in its figures."""
    contrast = """
        const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
        const parts = c => c.match(/[\\d.]+/g).slice(0, 3).map(v => linear(v / 255));
        const light = c => { const [r, g, b] = parts(c); return .2126 * r + .7152 * g + .0722 * b; };
        const ratio = (a, b) => (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
        const style = s => getComputedStyle(document.querySelector(s));
        const card = light(style('figure').backgroundColor), page = light(style('body').backgroundColor);
        return [ratio(light(style('body').color), page), ratio(light(style('figcaption').color), card),
                ratio(light(style('figure svg text').fill), card), ratio(light(style('nav a').color), page), page];
    """
    grounds = []
    for scheme in ("light", "dark"):
        show(browser, address, scheme=scheme)
        *ratios, ground = browser.execute_script(contrast)
        assert min(ratios) >= 4.5, (scheme, ratios)
        grounds.append(ground)
    assert grounds[0] > 0.8
    assert grounds[1] < 0.05
