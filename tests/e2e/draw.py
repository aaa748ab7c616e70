"""Draws dashboards in a real browser: panels/ with what Prometheus answered put into it.

PYTHONPATH=tests python tests/e2e/draw.py     makes docs/pictures/ anew, from a world of its own
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from e2e import dashboards
from e2e.dashboards import Answer
from metrics_world import RECORDED, World
from support import require

HERE = Path(__file__).parent / "panels"
SCRIPTS = ("format.js", "time.js", "values.js", "page.js")
WIDTH = 1500
PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
#: Of some pictures: the node shown, for all of them would be a jumble of lines; and the rows.
SHOWN = {"gpu": "sim-hgx-1", "fabric": "sim-hgx-1"}
ROWS = {"gpu": ("NVLink", "Links", "Health", "Who")}
#: As in page.js: pixels of a line of Grafana's grid, and what is above and below the grid.
UNIT, AROUND = 30, 14 + 34 + 26 + 20
FOOTER = (
    "Drawn by fabrictap's tests from what a Prometheus answered, not by Grafana. Nodes sim-* are simulated"
)
#: Where there is one.
RECORDING = "; vm-* are a recording of RDMA between two Soft-RoCE devices in a VM"


def browser() -> str:
    """Path of a Chromium that draws without a screen."""
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    require("chromium", found is not None, "apt-get install chromium-headless-shell, or chromium")
    assert found is not None
    return found


def page(
    world: World, dashboard: dict[str, Any], rows: tuple[str, ...] = (), **chosen: str
) -> tuple[str, int]:
    """HTML of a dashboard, or of some of its rows, with variables ``chosen``, and its height in pixels."""
    values = dashboards.chosen(dashboard, **chosen)
    panels: list[dict[str, Any]] = []
    heading, shift, below, taken = "", 0, 0, True
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        if panel["type"] == "row":
            heading = panel["title"]
            taken = not rows or heading in rows
            shift = place["y"] - below
        if not taken:
            continue
        below = max(below, place["y"] - shift + place["h"])
        answers: list[Answer] = []
        if panel["type"] not in ("row", "logs"):
            answers = dashboards.ask(world, values, panel)
        filled = json.loads(dashboards.substitute(json.dumps(_known(panel)), values, 0))
        panels.append(
            {
                "panel": {"transformations": [], **filled, "gridPos": {**place, "y": place["y"] - shift}},
                "answers": [{"legend": one.legend, "series": one.series} for one in answers],
            }
        )
    content = {
        "title": dashboard["title"],
        "subtitle": dashboard["description"],
        "footer": f"{FOOTER}{RECORDING if RECORDED else ''}.",
        "start": world.start,
        "end": world.end,
        "step": dashboards.STEP,
        "told": sorted(world.told, reverse=True),
        "panels": panels,
    }
    # "</" would end the script that the text stands in.
    text = json.dumps(content).replace("</", "<\\/")
    html = (HERE / "page.html").read_text().replace("/*PAGE*/", text)
    html = html.replace("/*SCRIPTS*/", "\n".join((HERE / name).read_text() for name in SCRIPTS))
    return html, below * UNIT + AROUND


def _known(part: Any) -> Any:
    """What is drawn of a panel: not its queries and description, nor where links go."""
    if isinstance(part, dict):
        left_out = ("targets", "description", "datasource")
        return {key: "" if key == "url" else _known(one) for key, one in part.items() if key not in left_out}
    return [_known(one) for one in part] if isinstance(part, list) else part


class _Sections(HTMLParser):
    """Title -> marks of every panel of a drawn page."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: dict[str, int] = {}
        self.body: dict[str, str | None] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "body":
            self.body = found
        if tag == "section":
            self.drawn[found["data-title"] or ""] = int(found.get("data-drawn") or 0)


def _chromium(arguments: list[str], file: Path) -> str:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        done = subprocess.run(
            [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             f"--user-data-dir={profile}", "--force-device-scale-factor=1", *arguments, f"file://{file}"],
            capture_output=True, text=True, timeout=120, check=True,
            env=os.environ | {"HOME": profile, "TZ": "UTC"},
        )  # fmt: skip
    return done.stdout


def marks(html: str, folder: Path) -> dict[str, int]:
    """Draws a page. Title of each panel -> how many marks it got."""
    file = folder / "page.html"
    file.write_text(html)
    sections = _Sections()
    sections.feed(_chromium([f"--window-size={WIDTH},2000", "--dump-dom"], file))
    assert sections.body.get("data-done") == "yes", sections.body
    assert "data-error" not in sections.body, sections.body
    return sections.drawn


def picture(html: str, height: int, to: Path) -> None:
    """Draws a page into a PNG."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        file.write_text(html)
        _chromium([f"--window-size={WIDTH},{height}", f"--screenshot={to}"], file)


def pictures(world: World, folder: Path = PICTURES) -> None:
    """A picture of each dashboard."""
    folder.mkdir(exist_ok=True)
    for file in dashboards.FILES:
        name = file.stem.removeprefix("fabrictap-")
        chosen = {"node": SHOWN[name]} if name in SHOWN else {}
        html, height = page(world, dashboards.load(file), ROWS.get(name, ()), **chosen)
        picture(html, height, folder / f"{name}.png")
        # Few colours are enough, and a third of the size.
        subprocess.run(
            ["pngquant", "--force", "--ext=.png", "64", folder / f"{name}.png"], check=True, timeout=60
        )
