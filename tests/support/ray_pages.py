"""Ray's dashboard in a browser, and a stand-in for the Grafana that it embeds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

Found = TypeVar("Found")
PATIENCE_S = 30.0
ROWS = "return [...document.querySelectorAll('tbody tr')].map(row => [...row.cells].map(cell => cell.innerText))"
EXPAND = "[...document.querySelectorAll('h4')].find(title => title.innerText.includes(arguments[0])).click()"
FETCH = "const done = arguments[1]; fetch(arguments[0]).then(answer => answer.text()).then(done)"


class RayPages:
    """What a person with the token sees. Args: address: of the dashboard, HOST:PORT."""

    def __init__(self, browser: Any, address: str, token: str) -> None:
        self._browser, self._url = browser, f"http://{address}"
        browser.get(self._url)
        browser.add_cookie({"name": "ray-authentication-token", "value": token})

    def actors(self) -> list[list[str]]:
        """Cells of the table."""
        return self._table("actors", lambda rows: any("ALIVE" in row for row in rows))

    def jobs(self) -> list[list[str]]:
        return self._table("jobs", lambda rows: any(len(row) > 2 for row in rows))

    def job(self, job: str) -> str:
        """The text of a job's page."""
        return self._show(f"jobs/{job}", self._body, lambda text: "Submission ID" in text)

    def tasks(self, job: str) -> list[list[str]]:
        """Cells of a job's table of tasks, of its first 500; it has more than 50."""
        self.job(job)
        self._browser.execute_script(EXPAND, "Task Table")
        size = self._wait(lambda: self._browser.find_elements("css selector", "input[value='10']"), bool)[0]
        size.send_keys("\b\b500")
        return self._wait(self._rows, lambda rows: len(rows) > 50)  # 50 while it is being typed

    def timeline(self, job: str) -> list[dict[str, Any]]:
        """The events of the trace that a job's page offers."""
        self.job(job)
        link = self._wait(lambda: self._browser.find_elements("css selector", "a[href*='tasks/timeline']"), bool)[0]
        events: list[dict[str, Any]] = json.loads(self._browser.execute_async_script(FETCH, link.get_attribute("href")))
        return events

    def embedded(self, page: str, count: int) -> dict[str, str]:
        """The text of what a page embeds, by its title. Args: count: how many there should be."""
        find = partial(self._browser.find_elements, "css selector", "iframe")
        found = {}
        for frame in self._show(page, find, lambda frames: len(frames) >= count):
            title = frame.get_attribute("title")
            self._browser.switch_to.frame(frame)
            found[title] = self._wait(self._body, bool)
            self._browser.switch_to.default_content()
        return found

    def _table(self, page: str, whole: Callable[[list[list[str]]], bool]) -> list[list[str]]:
        return self._show(page, self._rows, whole)

    def _rows(self) -> list[list[str]]:
        rows: list[list[str]] = self._browser.execute_script(ROWS)
        return rows

    def _body(self) -> str:
        text: str = self._browser.find_element("css selector", "body").text
        return text

    def _show(self, page: str, read: Callable[[], Found], whole: Callable[[Found], bool]) -> Found:
        self._browser.get("about:blank")  # another fragment alone would load nothing
        self._browser.get(f"{self._url}/#/{page}")
        return self._wait(read, whole)

    def _wait(self, read: Callable[[], Found], whole: Callable[[Found], bool]) -> Found:
        """What is read as soon as it is whole; after a while, whatever it is."""
        deadline = time.monotonic() + PATIENCE_S
        while not whole(found := read()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return found


@contextmanager
def grafana_stand_in(directory: Path) -> Iterator[str]:
    """Serves what Ray asks a Grafana for, with the dashboards that lie in a directory; yields its address.

    A page shows a dashboard's title and its panels' titles as plain text, or the panel's alone that was asked for.
    """
    dashboards = {d["uid"]: d for d in (json.loads(p.read_text("utf-8")) for p in directory.glob("*.json"))}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts, query = urlsplit(self.path), parse_qs(urlsplit(self.path).query)
            kind, uid = [*parts.path.strip("/").split("/"), ""][:2]
            if parts.path == "/api/health":
                self._answer("application/json", '{"database": "ok"}')
            elif kind in ("d", "d-solo") and uid in dashboards:
                panels = {str(panel["id"]): panel["title"] for panel in dashboards[uid]["panels"]}
                one = kind == "d-solo" and panels.get(query["panelId"][0], "Panel not found")
                self._answer("text/html", one or "\n".join((dashboards[uid]["title"], *panels.values())))
            else:
                self.send_error(404)

        def _answer(self, kind: str, text: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
