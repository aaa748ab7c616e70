"""Finding and probing what a process uses: own copies, other mount namespaces, deleted files, memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from doubles.provider import elf
from doubles.provider.application import RC, Application
from doubles.provider.builder import PROVIDER, Double
from fabrictap.ext.records import QP_EXTENDED, decode
from fabrictap.sources.verbs import maps, memory
from fabrictap.sources.verbs.attach import Attachments
from fabrictap.sources.verbs.discovery import Discovery
from fabrictap.sources.verbs.samefile import same_pages
from host.tap import Tap, truth
from host.test_extended import batch
from support import require

FILES = (PROVIDER, "libibverbs.so.1", "driver")


class Agent:
    """What the source ``verbs`` has of the data path, without the rest."""

    def __init__(self, devices: str = "/dev/infiniband/uverbs", *, returns: bool = True) -> None:
        self.tap = Tap(None, returns=returns)
        self.errors: dict[str, int] = {}
        self.attachments = Attachments(self.tap.probes, self.errors)
        self.discovery = Discovery(self.attachments, self.errors, devices)

    def close(self) -> None:
        self.discovery.close()
        self.tap.close()


@pytest.fixture
def agent(bpf: None) -> Iterator[Agent]:
    made = Agent()
    yield made
    made.close()


@pytest.fixture
def place(tmp_path: Path) -> str:
    """Where the stand-in for /dev/infiniband/uverbs lies."""
    device = tmp_path / "infiniband" / "uverbs0"
    device.parent.mkdir()
    device.touch()
    return str(device.parent / "uverbs")


def copied(double: Double, to: Path) -> Double:
    """The same build at another place: other inodes, equal content."""
    to.mkdir(parents=True, exist_ok=True)
    for path in (double.library, double.libibverbs, double.driver):
        shutil.copy2(path, to / path.name)
    return Double(to / PROVIDER, to / "libibverbs.so.1", to / "driver")


def started(double: Double, **more: object) -> Application:
    """Its application, with its libraries loaded from where it lies."""
    return Application(double.driver, environment={"LD_LIBRARY_PATH": str(double.driver.parent)}, **more)


def opened(application: Application, uverbs: str | None = None) -> dict[int, str]:
    application.tell("device", "mlx5_0")
    context = application.tell("context", 0)
    if uverbs is not None:
        application.tell("uverbs", 0, uverbs)
    application.tell("qp", 0, 17, RC)
    return {context: "mlx5_0"}


def assert_exact(agent: Agent, application: Application, contexts: dict[int, str]) -> None:
    assert agent.tap.counters(application.pid) == truth(application.tell("counts"), contexts)
    assert agent.tap.lost() == {}


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# --- libraries of its own -------------------------------------------------------------------------


def test_a_process_with_its_own_copy_of_the_libraries_is_counted_exactly(agent, double, tmp_path):
    with started(copied(double, tmp_path / "own")) as application:
        contexts = opened(application)
        before = time.time_ns()
        since = agent.discovery.look(application.pid)
        assert before <= since <= time.time_ns()
        application.send(0, times=7, chain=3, sges=2)
        application.recv(0, times=5)
        assert_exact(agent, application, contexts)
    assert agent.errors == {}


def test_posts_before_the_look_are_not_counted_and_since_says_from_when(agent, double, tmp_path):
    with started(copied(double, tmp_path / "own")) as application:
        opened(application)
        application.send(0, times=100)
        missed = time.time_ns()
        assert agent.discovery.look(application.pid) > missed
        application.send(0, times=3)
        (count,) = agent.tap.counters(application.pid).values()
        assert count.totals[0] == 3


def test_a_process_in_a_mount_namespace_of_its_own_is_counted_exactly(agent, double, tmp_path):
    """Its libraries lie on a tmpfs that only it has: no path of this process leads there."""
    why = subprocess.run(["unshare", "-m", "true"], capture_output=True, text=True, check=False).stderr
    require("mount-namespaces", not why, why)
    root = tmp_path / "image"
    root.mkdir()
    names = " ".join(str(path) for path in (double.library, double.libibverbs, double.driver))
    script = f"mount -t tmpfs image {root} && cp {names} {root} && exec {root}/driver"
    with Application(
        ["unshare", "-m", "sh", "-c", script], environment={"LD_LIBRARY_PATH": str(root)}
    ) as application:
        contexts = opened(application)
        assert list(root.iterdir()) == []
        assert agent.discovery.look(application.pid) is not None
        application.send(0, times=11, chain=2)
        assert_exact(agent, application, contexts)


def test_a_library_that_was_deleted_under_a_running_process_is_still_counted(agent, double, tmp_path):
    own = copied(double, tmp_path / "own")
    with started(own) as application:
        contexts = opened(application)
        for path in (own.library, own.libibverbs):
            path.unlink()
        assert agent.discovery.look(application.pid) is not None
        application.send(0, times=4)
        assert_exact(agent, application, contexts)


def test_a_library_replaced_on_disk_is_another_one_and_both_are_counted(agent, double, doubles, tmp_path):
    own = copied(double, tmp_path / "own")
    with started(own) as old:
        of_old = opened(old)
        assert agent.discovery.look(old.pid) is not None
        other = doubles("endbr64_push")
        own.library.unlink()
        shutil.copy2(other.library, own.library)
        with started(own) as new:
            opened(new)
            assert agent.discovery.look(new.pid) is not None
            old.send(0, times=2)
            assert_exact(agent, old, of_old)
            new.send(0, times=3)
            (count,) = agent.tap.counters(new.pid).values()
            assert count.totals[0] == 3
            assert len([file for file in agent.attachments if file.path.startswith(str(own.library))]) == 2


# --- each place once ------------------------------------------------------------------------------


def test_two_processes_with_one_library_share_its_probes(agent, double, tmp_path):
    own = copied(double, tmp_path / "own")
    with started(own) as one, started(own) as two:
        contexts = opened(one)
        opened(two)
        since = agent.discovery.look(one.pid)
        links, known = agent.attachments.links, descriptors()
        assert agent.discovery.look(two.pid) == since
        assert (agent.attachments.links, descriptors()) == (links, known)
        one.send(0, times=5)
        assert_exact(agent, one, contexts)


def test_equal_content_elsewhere_is_probed_there_too_and_analysed_once(agent, double, tmp_path):
    with started(copied(double, tmp_path / "a")) as one, started(copied(double, tmp_path / "b")) as two:
        of_one, of_two = opened(one), opened(two)
        assert agent.discovery.look(one.pid) is not None
        analysed = agent.discovery._libraries.analysed
        assert agent.discovery.look(two.pid) is not None
        assert agent.discovery._libraries.analysed == analysed
        one.send(0, times=2)
        assert_exact(agent, one, of_one)
        two.send(0, times=3)
        assert_exact(agent, two, of_two)


def overlay(lower: Path, at: Path) -> Path:
    for name in ("upper", "work", "merged"):
        (at / name).mkdir(parents=True)
    options = f"lowerdir={lower},upperdir={at / 'upper'},workdir={at / 'work'}"
    subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", options, str(at / "merged")],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return at / "merged"


@pytest.fixture
def two_containers(double: Double, tmp_path: Path) -> Iterator[list[Double]]:
    """Two overlay mounts of one image, as a container runtime makes them."""
    mounted: list[Path] = []
    try:
        # An overlay cannot lie on an overlay: the layers get a file system of their own.
        store = tmp_path / "store"
        store.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "store", str(store)], check=True, capture_output=True)
        mounted.append(store)
        image = copied(double, store / "image")
        for name in ("one", "two"):
            mounted.append(overlay(image.driver.parent, store / name))
    except subprocess.CalledProcessError as error:
        for path in reversed(mounted):
            subprocess.run(["umount", str(path)], check=False)
        require("overlay", False, f"an overlay file system cannot be mounted here: {error.stderr}")
    yield [Double(root / PROVIDER, root / "libibverbs.so.1", root / "driver") for root in mounted[1:]]
    for path in reversed(mounted):
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_one_library_of_an_image_in_two_containers_counts_once(agent, two_containers):
    with started(two_containers[0]) as one, started(two_containers[1]) as two:
        of_one, of_two = opened(one), opened(two)
        assert agent.discovery.look(one.pid) is not None
        links = agent.attachments.links
        assert agent.discovery.look(two.pid) is not None
        assert agent.attachments.links == links
        one.send(0, times=2)
        assert_exact(agent, one, of_one)
        two.send(0, times=3)
        assert_exact(agent, two, of_two)


def test_same_pages_tells_one_file_from_an_equal_one(double, tmp_path):
    own = copied(double, tmp_path / "own")
    one, again, equal = (os.open(path, os.O_RDONLY) for path in (double.library, double.library, own.library))
    try:
        assert same_pages(one, again)
        assert not same_pages(one, equal)
    finally:
        for descriptor in (one, again, equal):
            os.close(descriptor)


# --- letting go -----------------------------------------------------------------------------------


def test_what_the_last_process_mapped_is_let_go_and_what_another_maps_is_kept(agent, double, tmp_path):
    before = descriptors()
    own = copied(double, tmp_path / "own")
    with started(own) as second:
        opened(second)
        with started(own) as first:
            opened(first)
            assert agent.discovery.look(first.pid) is not None
        agent.discovery.sweep()
        # Nobody had looked at the second process: the file's mappings told.
        contexts = {second.tell("context", 0): "mlx5_0"}
        second.tell("qp", 1, 18, RC)
        second.send(1, times=3)
        assert_exact(agent, second, contexts)
    agent.discovery.sweep()
    agent.attachments.settle()
    assert (len(agent.attachments), agent.attachments.links, descriptors()) == (0, 0, before)
    assert set(agent.tap.probes.attached.values()) == {0}


def test_a_container_s_file_system_can_be_unmounted_when_its_last_process_has_gone(agent, double, tmp_path):
    root = tmp_path / "image"
    root.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "image", str(root)], check=True, capture_output=True, text=True
        )
    except subprocess.CalledProcessError as error:
        require("mount", False, error.stderr)
    with started(copied(double, root)) as application:
        opened(application)
        assert agent.discovery.look(application.pid) is not None
        busy = subprocess.run(["umount", str(root)], check=False, capture_output=True).returncode
        assert busy
    agent.discovery.sweep()
    agent.attachments.settle()
    subprocess.run(["umount", str(root)], check=True)


def test_a_library_of_the_host_stays_probed_until_it_is_replaced(agent, double, tmp_path):
    own = copied(double, tmp_path / "own")
    descriptor = os.open(own.library, os.O_RDONLY)
    offset = elf.exported(own.library)["post_send"]
    agent.attachments.add(descriptor, str(own.library), {"post_send": (offset,)}, kept=True)
    agent.discovery.sweep()
    assert len(agent.attachments) == 1
    own.library.unlink()
    agent.discovery.sweep()
    assert len(agent.attachments) == 0


def test_a_thousand_short_processes_leave_nothing_behind(agent, double, tmp_path):
    """Ten images in turn; each process opens its device, posts, and ends."""
    images = [copied(double, tmp_path / str(number)) for number in range(10)]
    agent.discovery.sweep()
    before = descriptors()
    counted = 0
    for number in range(1000):
        with started(images[number % len(images)]) as application:
            opened(application)
            assert agent.discovery.look(application.pid) is not None
            application.send(0, times=1 + number % 3)
        if number % 250 == 249:
            agent.discovery.sweep()
            for key, post in agent.tap.moved():
                counted += post.operations
                assert agent.tap.map.delete(key.raw)
                agent.tap.posts.forget(key.raw)
    assert counted == sum(1 + number % 3 for number in range(1000))
    agent.discovery.sweep()
    agent.attachments.settle()
    assert agent.tap.lost() == {}
    assert list(agent.tap.map.batches()) == []
    assert (len(agent.attachments), agent.attachments.links, descriptors()) == (0, 0, before)
    assert agent.attachments.attached == agent.attachments.detached > 0
    assert agent.errors == {}


# --- memory ---------------------------------------------------------------------------------------


def test_functions_that_the_files_do_not_tell_are_found_in_the_process_s_memory(bpf, double, tmp_path, place):
    own = copied(double, tmp_path / "own")
    agent = Agent(place)
    try:
        with started(own) as application, started(own) as other:
            contexts = opened(application, place + "0")
            opened(other)
            # Without libibverbs nothing tells in which order the provider's table is.
            agent.discovery._libibverbs = lambda *_: None
            assert agent.discovery.look(application.pid) is not None
            (file,) = agent.attachments
            assert file.key[2] == application.pid
            application.send(0, times=6, chain=2)
            application.tell("srq", 0, 5)
            application.tell("shared", 0, 2, 1, 1, 50)
            other.send(0, times=9)
            assert_exact(agent, application, contexts)
        agent.discovery.sweep()
        assert len(agent.attachments) == 0
    finally:
        agent.close()


def test_a_device_that_is_not_open_is_not_found(bpf, double, tmp_path, place):
    agent = Agent(place)
    try:
        with started(copied(double, tmp_path / "own")) as application:
            opened(application)
            agent.discovery._libibverbs = lambda *_: None
            assert agent.discovery.look(application.pid) is None
            assert len(agent.attachments) == 0
    finally:
        agent.close()


def test_the_search_in_memory_keeps_to_its_limits(double, tmp_path, place):
    with started(copied(double, tmp_path / "own")) as application:
        opened(application, place + "0")
        mapped = maps.mappings(application.pid, writable=True)
        code = [mapping for mapping in mapped if mapping.path.endswith(PROVIDER) and mapping.executable_file]
        number = maps.descriptors_on(application.pid, place)
        for limits in (memory.Limits(bytes=4096), memory.Limits(seconds=0), memory.Limits(regions=0)):
            with memory.Memory(application.pid, mapped, limits) as searched:
                assert memory.contexts(searched, code, number) == []
                assert searched.incomplete
                assert searched.scanned <= limits.bytes
        with memory.Memory(application.pid, mapped) as searched:
            (found,) = memory.contexts(searched, code, number)
        assert not searched.incomplete
        exported = elf.exported(double.library)
        assert {
            name: address - found.code.start + found.code.offset for name, address in found.functions.items()
        } == {name: exported[name] for name in ("poll_cq", "post_send", "post_recv", "post_srq_recv")}


def test_what_a_process_invents_is_not_probed(bpf, double, tmp_path, place):
    """A forged context whose post_send points into the middle of a function."""
    agent = Agent(place)
    try:
        with started(copied(double, tmp_path / "own")) as application:
            opened(application, place + "0")
            agent.discovery._libibverbs = lambda *_: None
            application.tell("forge", 0)
            assert agent.discovery.look(application.pid) is None
            assert agent.errors == {"no_libibverbs": 1, "no_function": 1}
            assert len(agent.attachments) == 0
    finally:
        agent.close()


def test_a_process_that_has_gone_is_nothing(agent):
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert agent.discovery.look(gone.pid) is None
    assert agent.errors == {}


# --- the extended API -----------------------------------------------------------------------------


def extended(agent: Agent, application: Application) -> list[int | None]:
    """Since when each queue pair that was told of by the probe is counted."""
    records = decode(agent.tap.probes.records.poll(0))
    assert {record.kind for record in records} <= {QP_EXTENDED}
    return [agent.discovery.extended(record.pid, record.qp_ex_functions) for record in records]


def test_a_queue_pair_of_the_extended_api_is_counted_from_when_it_was_handed_out(agent, double, tmp_path):
    own = copied(double, tmp_path / "own")
    with started(own) as application, started(own) as other:
        contexts = opened(application)
        opened(other)
        other.tell("extend", 0)
        assert agent.discovery.look(application.pid) is not None
        before = time.time_ns()
        application.tell("extend", 0)
        (since,) = extended(agent, application)
        assert before <= since <= time.time_ns()
        # Another queue pair with the same functions finds them probed.
        application.tell("qp", 0, 18, RC)
        application.tell("extend", 1)
        links = agent.attachments.links
        assert extended(agent, application) == [since]
        assert agent.attachments.links == links
        for qp in (0, 1):
            batch(application, qp, times=5, messages=3)
        batch(other, times=9)  # what one process named is probed in that one only
        assert_exact(agent, application, contexts)
    agent.discovery.sweep()
    assert len(agent.attachments) == 0


def test_functions_that_the_helper_found_are_probed_before_the_first_queue_pair(agent, double, tmp_path):
    places = [double.place("post_send"), *double.extended()]
    agent.discovery.host(places)
    probed = time.time_ns()
    with started(copied(double, tmp_path / "own")) as application:
        contexts = opened(application)
        since = agent.discovery.look(application.pid)
        application.tell("extend", 0)
        (known,) = extended(agent, application)
        assert probed < since
        assert known < time.time_ns()
        assert all(file.key[2] == 0 for file in agent.attachments)
        batch(application, times=5, messages=3)
        assert_exact(agent, application, contexts)


def test_a_queue_pair_that_is_older_than_the_agent_is_found_in_memory(bpf, double, tmp_path, place):
    with started(copied(double, tmp_path / "own")) as application:
        contexts = opened(application, place + "0")
        application.tell("extend", 0)
        agent = Agent(place)
        try:
            assert application.pid in agent.discovery.running()
            assert agent.discovery.look(application.pid) is not None
            batch(application, times=5, messages=3)
            application.send(0, times=2)
            assert_exact(agent, application, contexts)
            assert agent.errors == {}
        finally:
            agent.close()


def test_functions_in_memory_without_a_file_are_refused(agent, double, tmp_path):
    with started(copied(double, tmp_path / "own")) as application:
        opened(application)
        assert agent.discovery.extended(application.pid, [0x1000 + 16 * index for index in range(20)]) is None
        assert agent.errors == {"no_function": 1}


def test_entries_of_threads_that_ended_are_swept(agent, double, tmp_path):
    with started(copied(double, tmp_path / "own")) as application:
        opened(application)
        agent.discovery.look(application.pid)
        application.tell("mixed", 1, 8, 50)
        calls = agent.tap.probes.object.map("calls")
        assert sum(count for _, _, count in calls.batches()) > 8
        kept = agent.attachments.forget_threads()
        assert kept > 8  # of threads that have ended; the process's own is there still
        application.send(0)
        assert sum(count for _, _, count in calls.batches()) > 0
    agent.attachments.forget_threads()
    assert list(calls.batches()) == []


def test_without_return_probes_queue_pairs_of_the_extended_api_are_found_too(bpf, double, tmp_path):
    agent = Agent(returns=False)
    try:
        with started(copied(double, tmp_path / "own")) as application:
            contexts = opened(application)
            assert agent.discovery.look(application.pid) is not None
            application.tell("extend", 0)
            (since,) = extended(agent, application)
            assert since is not None
            batch(application, times=5, messages=3)
            application.send(0, times=2)
            assert_exact(agent, application, contexts)
    finally:
        agent.close()
