"""Headless Chromium on a page of ours: what it says on its console, what it asks for, how wide it is."""

from __future__ import annotations

import functools
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    # a name that is asked for leads nowhere, and is noted all the same
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--enable-logging=stderr",
    "--v=0",
]
SECONDS = 60


@dataclass(frozen=True)
class Visit:
    """console: lines of any level. requests: addresses the page asked for, its own first. dom: the page afterwards."""

    console: list[str]
    requests: list[str]
    dom: str


def program() -> str:
    """The browser; skips the test where there is none."""
    found = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no Chromium found (looked for {', '.join(PROGRAMS)}); install it: apt-get install chromium")
    return found


@contextmanager
def served(folder: Path):
    """The folder over HTTP on this machine, so that anything a page asks for is a request that can be seen."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def visit(address: str, scratch: Path) -> Visit:
    """Load an address and wait for it to be still."""
    scratch.mkdir(parents=True, exist_ok=True)
    log = scratch / "net.json"
    command = [program(), *FLAGS, f"--user-data-dir={scratch / 'profile'}", f"--log-net-log={log}"]
    command += ["--virtual-time-budget=3000", "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    console = re.findall(r":CONSOLE[^\]]*\] (.*)", done.stderr)
    return Visit(console, requests_of(json.loads(log.read_text()), address), done.stdout)


def requests_of(log, address):
    """What a page at ``address`` asked for, from the browser's own record of its network.

    The browser has errands of its own (its clock, its updates); a request of a page names the page as initiator.
    """
    starts = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    params = [
        event["params"] for event in log["events"] if event["type"] == starts and "url" in event.get("params", {})
    ]
    asked = [found["url"] for found in params if found["initiator"] != "not an origin" or found["url"] == address]
    return list(dict.fromkeys(asked))


def overflows(folder: Path, page: str, widths: Sequence[int], scratch: Path) -> dict[int, tuple[int, int]]:
    """By width of the window: (width inside it, width of the page's content)."""
    frames = "".join(
        f'<iframe src="{page}" style="width:{width}px;height:900px;border:0"></iframe>' for width in widths
    )
    script = (
        "onload = () => { for (const f of document.querySelectorAll('iframe')) {"
        " const d = f.contentDocument.documentElement; const p = document.createElement('p');"
        " p.textContent = `found ${d.clientWidth} ${d.scrollWidth}`; document.body.append(p); } }"
    )
    (folder / "frames.html").write_text(f"<link rel='icon' href='data:,'>{frames}<script>{script}</script>")
    with served(folder) as root:
        found = re.findall(r"found (\d+) (\d+)", visit(f"{root}/frames.html", scratch).dom)
    return {width: (int(inside), int(content)) for width, (inside, content) in zip(widths, found, strict=True)}
