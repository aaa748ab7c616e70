"""The kubelet's list of pods over a real socket, with and without TLS."""

from __future__ import annotations

import json
import random
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fabrictap.config import Config, ConfigError, load
from fabrictap.ledger import Ledger
from fabrictap.ledger.workloads import Container, Pod, Workload
from fabrictap.series import SeriesTable
from fabrictap.sources.kubelet import podlist
from fabrictap.sources.kubelet.podlist import Address, PodListError, decode, fetch
from fabrictap.sources.kubelet.source import Kubelet

UID = "2c48913c-b29f-11e7-9350-020968147796"
ID = "9bca8d63d5fa610783847915bcff0ecac1273e5b4bed3f6fa1b07350e0135961"


def pod(name: str = "train-0", uid: str = UID, container_id: str = f"containerd://{ID}") -> dict[str, object]:
    return {
        "metadata": {"name": name, "namespace": "ml", "uid": uid, "labels": {"a": "b"}},
        "spec": {"containers": [{"name": "main"}]},
        "status": {
            "phase": "Running",
            "containerStatuses": [{"name": "main", "containerID": container_id, "ready": True}],
            "initContainerStatuses": [{"name": "waits", "containerID": ""}],
        },
    }


def pods(*items: dict[str, object]) -> bytes:
    return json.dumps({"kind": "PodList", "apiVersion": "v1", "items": items}).encode()


class Server(ThreadingHTTPServer):
    """Answers with ``status`` and ``body``; ``seen`` holds the requests' paths and tokens."""

    daemon_threads = True

    def __init__(self) -> None:
        self.status, self.body = 200, pods(pod())
        self.seen: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.seen.append((self.path, self.headers["Authorization"]))
                self.send_response(outer.status)
                self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.send_header("Content-Length", str(len(outer.body)))
                self.end_headers()
                self.wfile.write(outer.body)

            def log_message(self, *arguments: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    new = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    name = ["-keyout", "key", "-out", "cert", "-subj", "/CN=k", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(["openssl", *new, *name], cwd=folder, check=True, capture_output=True)
    return folder


def test_the_list_names_pods_and_containers_by_id(server: Server):
    listing = decode(fetch(Address(f"http://127.0.0.1:{server.server_port}/pods"), 5), 10)
    assert listing.pods == {UID: Pod(UID, "ml", "train-0")}
    assert listing.containers == {ID: Container("ml", "train-0", "main", UID)}
    assert (listing.rejected, listing.dropped) == (0, 0)
    assert server.seen == [("/pods", None)]


def test_a_token_goes_out_over_verified_tls_only(server: Server, certificate: Path, tmp_path: Path):
    token = tmp_path / "token"
    token.write_text("secret\n")
    fetch(Address(f"http://127.0.0.1:{server.server_port}", str(token)), 5)
    assert server.seen == [("/pods", None)], "never in the clear"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert", certificate / "key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    url = f"https://127.0.0.1:{server.server_port}/pods"
    with pytest.raises(PodListError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch(Address(url, str(token)), 5)
    assert len(server.seen) == 1
    fetch(Address(url, str(token), str(certificate / "cert")), 5)
    fetch(Address(url, str(token), insecure=True), 5)
    assert server.seen[1:] == [("/pods", "Bearer secret")] * 2
    token.write_bytes(b"a\r\nX: y")
    with pytest.raises(PodListError, match="holds no token"):
        fetch(Address(url, str(token), insecure=True), 5)
    with pytest.raises(PodListError, match="No such file"):
        fetch(Address(url, str(tmp_path / "none"), insecure=True), 5)


@pytest.mark.parametrize("status", [302, 401, 403, 500])
def test_a_refusal_is_an_error_and_no_redirection_is_followed(server: Server, status: int):
    server.status = status
    with pytest.raises(PodListError, match=str(status)) as caught:
        fetch(Address(f"http://127.0.0.1:{server.server_port}/pods"), 5)
    assert caught.value.word == f"http_{status}"


def test_a_server_that_feeds_byte_by_byte_or_says_nothing_costs_the_deadline():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        stop = threading.Event()

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\n")
                while not stop.wait(0.02):
                    try:
                        connection.sendall(b"X")
                    except OSError:
                        return

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        for _ in range(2):  # the second time nobody even accepts
            began = time.monotonic()
            with pytest.raises(PodListError) as caught:
                fetch(Address(f"http://127.0.0.1:{port}"), 0.4)
            assert time.monotonic() - began < 3
            assert caught.value.word == "timeout"
        stop.set()
        thread.join(5)


def test_more_than_a_kubelet_answers_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(podlist, "MAX_ANSWER", 1000)
    server.body = b"[" * 5000
    with pytest.raises(PodListError) as caught:
        fetch(Address(f"http://127.0.0.1:{server.server_port}"), 5)
    assert caught.value.word == "too_large"


def test_names_that_are_none_and_more_pods_than_the_limit_are_counted():
    many = [pod(f"p{n}", f"{n:08x}{UID[8:]}", f"docker://{n:064x}") for n in range(5)]
    listing = decode(pods(pod("Bad\n"), pod(uid="../../etc"), pod(container_id="x://1\x1b"), *many), 3)
    assert (len(listing.pods), len(listing.containers)) == (3, 2)
    assert (listing.rejected, listing.dropped) == (3, 3)


@pytest.mark.parametrize("lie", [b"", b"null", b"{", b"[1]", b'{"items": 5}', b"\xff", b"[" * 100_000])
def test_what_is_no_list_is_one_error(lie: bytes):
    with pytest.raises(PodListError) as caught:
        decode(lie, 10)
    assert caught.value.word == "malformed"


def test_broken_lists_never_fault():
    rng = random.Random(2)
    whole = pods(pod())
    for _ in range(3000):
        broken = bytearray(whole)
        for _ in range(rng.randrange(1, 5)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        try:
            listing = decode(bytes(broken), 10)
        except PodListError:
            continue
        assert all(found.name.isascii() for found in (*listing.pods.values(), *listing.containers.values()))


def test_the_source_completes_what_the_log_directories_do_not_name(server: Server, tmp_path: Path):
    config = Config()
    kubelet = config.sources.kubelet
    kubelet.socket, kubelet.pods_log_dir = str(tmp_path / "s"), str(tmp_path / "pods")
    kubelet.url = f"http://127.0.0.1:{server.server_port}/pods"
    ledger = Ledger(config)
    source = Kubelet(kubelet, config.limits, SeriesTable(100), ledger, 2.0)
    source.fold(source.sample(), 10**18)
    complete = ledger.workloads.complete(Workload(pod_uid=UID, container_id=ID))
    assert (complete.namespace, complete.pod_name, complete.container_name) == ("ml", "train-0", "main")
    other = ledger.workloads.complete(Workload(pod_uid="0" * 32, container_id=ID))
    assert other.container_name is None, "the container's pod is another one"


@pytest.mark.parametrize("url", ["127.0.0.1:10250", "ftp://x", "https://user:pw@host/pods", "http://"])
def test_an_address_that_is_none_is_refused_at_the_start(url: str, load_set: Callable[[str], object]):
    with pytest.raises(ConfigError, match=r"sources\.kubelet\.url"):
        load_set(f"sources.kubelet.url={url}")


@pytest.fixture
def load_set() -> Callable[[str], object]:
    return lambda setting: load(environ={}, settings=[setting])
