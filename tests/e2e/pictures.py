"""Makes docs/pictures anew: `make pictures`. The tests draw the same pages and keep nothing."""

from __future__ import annotations

from e2e import draw
from metrics_world import World

pytest_plugins = ["metrics_world"]


def test_pictures(world: World) -> None:
    draw.pictures(world)
