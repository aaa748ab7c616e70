"""The source that docs/developer.md shows: it works as it stands there, run as the agent runs sources."""

import importlib.util
import re
import subprocess
import sys
import threading

import pytest

from fabrictap import catalog
from fabrictap.journal import Journal
from fabrictap.runner import Runner
from fabrictap.series import SeriesTable
from pages import ROOT
from support import eventually, require

EXAMPLE = ROOT / "docs" / "examples" / "aer.py"
#: As Linux writes it, shortened.
CORRECTABLE = "RxErr 1\nBadTLP 2\nTOTAL_ERR_COR {}\n"


@pytest.fixture
def tree(tmp_path):
    """(root, set a count): a /sys with a device that has AER, and one that has none."""
    for device in ("mlx5_0", "rxe0"):
        (tmp_path / "class/infiniband" / device / "device").mkdir(parents=True)
    files = tmp_path / "class/infiniband/mlx5_0/device"

    def count(number):
        (files / "aer_dev_correctable").write_text(CORRECTABLE.format(number))

    count(7)
    (files / "aer_dev_nonfatal").write_text("TOTAL_ERR_NONFATAL 0\n")
    (files / "aer_dev_fatal").write_text("what is this\n")
    return tmp_path, count


def example():
    spec = importlib.util.spec_from_file_location("example_aer", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Aer


def values(table):
    return {
        series.attributes["error.type"]: series.value
        for series in table
        if series.metric is catalog.ERRORS and series.attributes["hw.id"] == "mlx5_0"
    }


def test_it_is_what_the_page_shows():
    page = (ROOT / "docs" / "developer.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert EXAMPLE.read_text() in blocks, "docs/examples/aer.py and docs/developer.md differ"
    body = [line for line in EXAMPLE.read_text().splitlines() if line.strip()]
    assert len(body) <= 50, "fifty lines, says the page"


def test_it_delivers_under_the_runner_and_goes_on_after_a_fault(tree):
    root, count = tree
    table = SeriesTable(64)
    source = example()(table, str(root))
    source.interval = 0.05
    lock = threading.Lock()
    runner = Runner(source, lock, Journal(table.ring))
    runner.start()
    try:
        assert runner.settled.wait(10)
        eventually(lambda: values(table) == {"pcie_correctable": 7, "pcie_non_fatal": 0}, "the first counts")
        assert runner.up
        assert source.errors["ValueError"] >= 1, "a line that is none costs its own value"
        count(12)
        eventually(lambda: values(table)["pcie_correctable"] == 12, "what came to it")
    finally:
        runner.stop()
        assert runner.join(10)


def test_a_node_without_devices_is_told_so(tmp_path):
    table = SeriesTable(8)
    runner = Runner(example()(table, str(tmp_path)), threading.Lock(), Journal(table.ring))
    runner.start()
    assert runner.settled.wait(10)
    assert not runner.up
    assert f"no RDMA device below {tmp_path}/class/infiniband" in runner.reason
    runner.stop()


def test_its_types_are_those_of_a_source(tmp_path):
    require("mypy", importlib.util.find_spec("mypy") is not None, "make setup installs it")
    program = tmp_path / "wired.py"
    program.write_text(
        "from aer import Aer, Sample\nfrom fabrictap.series import SeriesTable\n"
        "from fabrictap.sources import Source\nsource: Source[Sample] = Aer(SeriesTable(8))\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--no-error-summary",
            "--cache-dir",
            str(tmp_path),
            str(program),
        ],
        capture_output=True,
        text=True,
        timeout=280,
        env={"MYPYPATH": f"{EXAMPLE.parent}:{ROOT / 'agent'}", "PATH": "/usr/bin:/bin"},
        check=False,
    )
    assert done.returncode == 0, done.stdout
