"""Opening a page in a real browser, to see what it makes of it."""

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import PATIENCE

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="needs chromium, and none is on the path (apt-get install chromium)"
)

# Runs before anything of the page's own, and after everything of it.
_WATCH = """<script>
window.wrong = [];
addEventListener("error", e => wrong.push(e.message), true);
</script>"""
_TELL = """<script>addEventListener("load", () => {
  %s
  const told = document.createElement("pre");
  told.id = "told";
  told.textContent = JSON.stringify({
    wrong,
    images: [...document.images].map(i => [i.naturalWidth, i.naturalHeight, i.clientWidth]),
    requests: performance.getEntriesByType("resource")
      .map(r => r.name).filter(n => !n.startsWith("data:")),
    overflow: document.documentElement.scrollWidth - innerWidth,
    text: document.body.innerText,
    result: window.result ?? null,
  });
  document.body.append(told);
});</script></body>"""


class Seen(NamedTuple):
    """What a browser tells of a page."""

    wrong: list[str]  # errors of scripts, and pictures that failed
    images: list[tuple[int, int, int]]  # natural width and height, width on the screen
    requests: list[str]  # everything it asked for beside what is inlined
    overflow: int  # pixels wider than the window
    text: str
    result: object  # what the script given set as window.result


def open_page(path: Path, folder: Path, script: str = "", width: int = 1280) -> Seen:
    """Open a page in headless Chromium, without a network, and run a script in it."""
    probe = folder / f"probe-{path.stem}.html"
    page = path.read_text(encoding="utf-8")
    page = page.replace("<head>", "<head>" + _WATCH, 1)
    probe.write_text(page.replace("</body>", _TELL % script), encoding="utf-8")
    command = [
        BROWSER,
        "--headless",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--enable-logging=stderr",
        f"--user-data-dir={folder / 'browser'}",
        f"--window-size={width},900",
        "--dump-dom",
        probe.as_uri(),
    ]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.insert(1, "--no-sandbox")  # the sandbox cannot be had as root
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    told = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    assert told, f"the page did not finish loading:\n{done.stderr[-2000:]}"
    seen = Seen(**json.loads(unescape(told[1])))
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return seen._replace(wrong=[*seen.wrong, *console])
