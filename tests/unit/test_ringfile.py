"""The ring's file: made whole, the older ones kept, one writer, and never why there is no agent."""

from __future__ import annotations

import fcntl
import os
import subprocess
import threading
import time

import pytest

from fabrictap import ringfile
from fabrictap.config import Config
from fabrictap.ledger import names
from support import require


def create(path, **settings):
    config = Config()
    config.ring.path = str(path)
    config.ring.span = 2.0
    config.limits.series = 64
    for name, value in settings.items():
        setattr(config.ring, name, value)
    return ringfile.create(config.ring, config.limits, names.LISTS)


def warnings(caplog):
    return [record.message for record in caplog.records if record.levelname == "WARNING"]


@pytest.fixture
def small(tmp_path):
    """A file system with 256 KiB."""
    require("root", os.geteuid() == 0, "mounting a small file system needs root")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=755", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def test_older_files_move_up_and_the_oldest_goes(tmp_path):
    path = tmp_path / "ring"
    for generation in range(4):
        memory = create(path, keep=2)
        assert memory.path == str(path)
        memory.describe(b"generation %d" % generation)
        del memory  # its writer has ended
    (tmp_path / "ring.lock").unlink()
    kept = {one.name: one.read_bytes().split(b"generation ")[1][:1] for one in tmp_path.iterdir()}
    assert kept == {"ring": b"3", "ring.1": b"2", "ring.2": b"1"}


def test_a_file_system_that_is_full_costs_the_recorder_not_the_agent(small, caplog):
    path = small / "ring"
    path.write_text("what was there")
    memory = create(path)
    assert memory.path is None
    memory.tick(time.time_ns())
    (said,) = warnings(caplog)
    assert "no flight recorder: " in said
    assert "No space left" in said
    # The crash's own record is still where it was, and nothing half made beside it.
    assert path.read_text() == "what was there"
    assert sorted(one.name for one in small.iterdir()) == ["ring", "ring.lock"]


def test_a_second_agent_runs_without_a_recorder(tmp_path, caplog):
    first = create(tmp_path / "ring")
    second = create(tmp_path / "ring")
    assert (first.path, second.path) == (str(tmp_path / "ring"), None)
    (said,) = warnings(caplog)
    assert "is written by another agent" in said


def test_of_agents_that_start_at_once_one_has_the_file(tmp_path, caplog):
    path = tmp_path / "ring"
    together = threading.Barrier(6)
    rings = []

    def start():
        together.wait()
        rings.append(create(path))

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rings) == 6
    assert [ring.path for ring in rings if ring.path] == [str(path)]
    assert len(warnings(caplog)) == 5
    assert sorted(one.name for one in tmp_path.iterdir()) == ["ring", "ring.lock"]


def test_while_another_one_is_starting_the_file_is_left_alone(tmp_path, caplog):
    path = tmp_path / "ring"
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert create(path).path is None
    os.close(lock)
    assert "another agent is just starting" in warnings(caplog)[0]
    assert create(path).path == str(path)


def test_a_directory_that_others_may_write_to_is_refused(tmp_path, caplog):
    tmp_path.chmod(0o777)
    assert create(tmp_path / "ring").path is None
    assert "others may write to" in warnings(caplog)[0]
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_the_place_of_the_new_file_is_not_followed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("not the agent's")
    (tmp_path / "ring.new").symlink_to(elsewhere)
    assert create(tmp_path / "ring").path is not None
    assert elsewhere.read_text() == "not the agent's"
