"""OTLP over gRPC with TLS, with certificates made by openssl."""

import logging

import grpc

from otlp_receiver import Receiver, put
from support import eventually

pytest_plugins = ["uplink_fixtures", "pki"]


def secure_receiver(pki, ca, address="localhost:0", client_ca=None):
    receiver = Receiver()
    credentials = grpc.ssl_server_credentials(
        [((pki / f"{ca}-server.key").read_bytes(), (pki / f"{ca}-server.pem").read_bytes())],
        (pki / f"{client_ca}.pem").read_bytes() if client_ca else None,
        client_ca is not None,
    )
    receiver.port = receiver.start(address, credentials)
    return receiver


def test_tls_with_a_client_certificate(pki, uplink_to):
    receiver = secure_receiver(pki, "a", client_ca="a")
    uplink = uplink_to(
        f"https://localhost:{receiver.port}",
        certificate=str(pki / "a.pem"),
        client_key=str(pki / "a-client.key"),
        client_certificate=str(pki / "a-client.pem"),
    )
    put(uplink, b"a")
    assert uplink.flush(10)
    assert receiver.calls[0][3]["x509_common_name"] == [b"a-client"]
    receiver.stop()


def test_an_untrusted_server_gets_nothing(pki, uplink_to, caplog):
    receiver = secure_receiver(pki, "b")
    uplink = uplink_to(f"https://localhost:{receiver.port}", certificate=str(pki / "a.pem"))
    put(uplink, b"a")
    assert not uplink.flush(0.5)
    assert receiver.calls == []
    receiver.stop()


def test_replaced_certificate_files_are_used_without_a_restart(pki, tmp_path, uplink_to, caplog):
    caplog.set_level(logging.INFO)
    trusted = tmp_path / "ca.pem"
    receiver = secure_receiver(pki, "b")
    uplink = uplink_to(f"https://localhost:{receiver.port}", certificate=str(trusted))
    put(uplink, b"1")
    eventually(lambda: f"{trusted}: No such file" in caplog.text, "the missing file is named")
    trusted.write_bytes((pki / "a.pem").read_bytes())
    assert not uplink.flush(0.5)
    fresh = tmp_path / "new.pem"
    fresh.write_bytes((pki / "b.pem").read_bytes())
    fresh.replace(trusted)
    assert uplink.flush(20)
    assert receiver.bodies == [b"1"]
    receiver.stop()
