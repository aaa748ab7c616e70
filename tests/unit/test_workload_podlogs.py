"""Names of pods from the node's log directories."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fabrictap.ledger.workloads.model import NONE, Container, Pod, Workload, named
from fabrictap.ledger.workloads.podlogs import PodLogs, parse_container, parse_pod

UID = "2c48913c-b29f-11e7-9350-020968147796"
ID = "9bca8d63d5fa610783847915bcff0ecac1273e5b4bed3f6fa1b07350e0135961"
POD = Pod(UID, "ml", "train-0.worker")


class Logs:
    def __init__(self, root: Path) -> None:
        self.pods, self.links = root / "pods", root / "containers"
        self.pods.mkdir()
        self.links.mkdir()

    def put(self, pod: Pod, **containers: str) -> None:
        for container, container_id in containers.items():
            (self.pods / f"{pod.namespace}_{pod.name}_{pod.uid}" / container).mkdir(parents=True)
            if container_id:
                link = self.links / f"{pod.name}_{pod.namespace}_{container}-{container_id}.log"
                link.symlink_to("/nowhere")


@pytest.fixture
def logs(tmp_path: Path) -> Logs:
    return Logs(tmp_path)


def test_names_are_parsed_as_the_kubelet_writes_them():
    assert parse_pod(f"ml_train-0.worker_{UID}") == POD
    static = "2732ca68f6358eba7703fb6f82a25c94"
    assert parse_pod(f"kube-system_etcd-n1_{static}") == Pod(static, "kube-system", "etcd-n1")
    assert parse_container(f"train-0.worker_ml_main-2-{ID}.log") == (
        ID,
        Container("ml", "train-0.worker", "main-2"),
    )


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a_b",
        f"a_b_c_{UID}",
        f"A_b_{UID}",
        f"a_b\n_{UID}",
        f"a_b_{UID}\n",
        f"a_b_{UID[:-1]}",
        f"{'a' * 64}_b_{UID}",
        f"a_{'b' * 254}_{UID}",
        f"-a_b_{UID}",
        "a_b_../../etc",
    ],
)
def test_what_is_no_name_of_a_pod(name: str):
    assert parse_pod(name) is None


@pytest.mark.parametrize(
    "name", ["", ".log", f"p_n_c-{ID}", f"p_n_c-{ID[:-1]}.log", f"p_n_-{ID}.log", f"p\x1b_n_c-{ID}.log"]
)
def test_what_is_no_name_of_a_container(name: str):
    assert parse_container(name) is None


def test_a_pod_is_found_the_moment_it_is_there_and_forgotten_when_it_is_gone(logs: Logs):
    found = PodLogs(str(logs.pods), 100)
    assert found.find(UID, ID) == (None, None)
    for number in range(20):
        uid = f"{number:08x}{UID[8:]}"
        logs.put(Pod(uid, "ml", f"p{number}"), main=f"{number:064x}", side="")
        pod, container = found.find(uid, f"{number:064x}")
        assert pod == Pod(uid, "ml", f"p{number}")
        assert container == Container("ml", f"p{number}", "main")
    for link in logs.links.iterdir():
        link.unlink()
    uid = f"{3:08x}{UID[8:]}"
    pod, container = found.find(uid, f"{3:064x}")
    assert (pod is not None, container) == (True, None), "two containers: which one is not known"


def test_a_pod_with_one_container_needs_no_link(logs: Logs):
    logs.put(POD, main="")
    assert PodLogs(str(logs.pods), 100).find(UID, ID) == (POD, Container("ml", POD.name, "main", UID))


def test_no_directory_is_no_name_and_no_fault(tmp_path: Path):
    logs = PodLogs(str(tmp_path / "none"), 10)
    assert not logs.present()
    assert logs.find(UID, ID) == (None, None)
    with pytest.raises(OSError, match="none"):
        logs.listing()


def test_a_link_in_the_place_of_the_directory_is_not_followed(logs: Logs, tmp_path: Path):
    logs.put(POD, main=ID)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.symlink_to(logs.pods)
    with pytest.raises(OSError, match="elsewhere"):
        PodLogs(str(elsewhere), 10).listing()


def test_more_pods_than_the_limit_and_names_that_are_none_are_counted(logs: Logs):
    for number in range(30):
        logs.put(Pod(f"{number:08x}{UID[8:]}", "ml", f"p{number}"), main=f"{number:064x}")
    (logs.pods / "lost+found").mkdir()
    (logs.links / "x\n\x1b[2J.log").touch()
    listing = PodLogs(str(logs.pods), 7).listing()
    assert (len(listing.pods), len(listing.containers)) == (7, 28)
    assert (listing.rejected, listing.dropped) == (2, 23 + 2)


def test_an_id_with_two_names_has_none(logs: Logs):
    logs.put(POD, main=ID)
    logs.put(Pod(UID, "evil", "mine"), main=ID)
    logs.put(Pod("0" * 32, "ml", "other"), main="0" * 64)
    listing = PodLogs(str(logs.pods), 10).listing()
    assert list(listing.pods) == ["0" * 32]
    assert list(listing.containers) == ["0" * 64]
    assert listing.rejected == 2


def test_a_container_of_another_pod_names_nothing():
    workload = Workload(container_id=ID, pod_uid=UID)
    assert named(workload, None, None) == workload
    assert named(workload, POD, Container("ml", "other", "main")).container_name is None
    assert named(workload, None, Container("ml", "other", "main", "0" * 32)) == workload
    complete = named(workload, POD, Container("ml", POD.name, "main"))
    assert (complete.namespace, complete.pod_name, complete.container_name) == ("ml", POD.name, "main")
    assert named(NONE, None, None) == NONE


def test_random_names_never_pass():
    rng = random.Random(11)
    for _ in range(5000):
        name = "_".join(rng.randbytes(rng.randrange(12)).decode("latin-1") for _ in range(rng.randrange(5)))
        assert parse_pod(name) is None
        assert parse_container(name + ".log") is None
