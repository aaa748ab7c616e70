"""The gRPC client over TLS against grpcio's server."""

import subprocess

import grpc
import pytest

from fabrictap.grpc import tls
from fabrictap.grpc.status import Code
from grpc_servers import METHOD, Took, failure_of

pytest_plugins = ["grpc_fixtures", "pki"]


@pytest.fixture
def secure(pki, echo):
    """Makes echo servers with the certificate of an authority, which may ask for one of the client."""

    def make(ca="a", client_ca=None, address="localhost:0"):
        pair = ((pki / f"{ca}-server.key").read_bytes(), (pki / f"{ca}-server.pem").read_bytes())
        client = (pki / f"{client_ca}.pem").read_bytes() if client_ca else None
        return echo(address, grpc.ssl_server_credentials([pair], client, client is not None))

    return make


def test_bytes_of_every_size_go_there_and_back(pki, secure, channel_to):
    server = secure()
    channel = channel_to(
        f"localhost:{server.port}", tls=tls.context(str(pki / "a.pem")), max_response=9 << 20
    )
    for size in (0, 1, 16_384, 1 << 20, 8 << 20):
        for compression in ("gzip", "identity"):
            assert channel.call(METHOD, bytes(size), 20.0, compression=compression) == bytes(size)
    assert len({peer for _, _, peer in server.seen}) == 1


def test_the_certificate_may_name_an_address(pki, secure, channel_to):
    server = secure(address="127.0.0.1:0")
    channel = channel_to(f"127.0.0.1:{server.port}", tls=tls.context(str(pki / "a.pem")))
    assert channel.call(METHOD, b"a", 5.0) == b"a"


def test_a_certificate_of_another_authority_or_host_is_not_accepted(pki, secure, channel_to):
    server = secure("b")
    failure = failure_of(channel_to(f"localhost:{server.port}", tls=tls.context(str(pki / "a.pem"))))
    assert failure.code is Code.UNAVAILABLE
    assert "certificate is not accepted" in failure.details
    # 127.0.0.2 is not among the names of the certificate.
    server = secure("a", address="127.0.0.2:0")
    failure = failure_of(channel_to(f"127.0.0.2:{server.port}", tls=tls.context(str(pki / "a.pem"))))
    assert "certificate is not accepted" in failure.details
    assert "127.0.0.2" in failure.details
    assert server.seen == []


def test_the_systems_certificates_do_not_know_ours(secure, channel_to):
    failure = failure_of(channel_to(f"localhost:{secure().port}", tls=tls.context()))
    assert "certificate is not accepted" in failure.details


def test_a_client_certificate(pki, secure, channel_to):
    target = f"localhost:{secure(client_ca='a').port}"

    def context(name):
        return tls.context(str(pki / "a.pem"), str(pki / f"{name}.key"), str(pki / f"{name}.pem"))

    assert channel_to(target, tls=context("a-client")).call(METHOD, b"a", 5.0) == b"a"
    for wrong in (context("b-client"), tls.context(str(pki / "a.pem"))):
        assert failure_of(channel_to(target, tls=wrong)).code is Code.UNAVAILABLE


def test_files_that_cannot_be_used_are_named(pki, tmp_path):
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    a, key, pem = str(pki / "a.pem"), str(pki / "a-client.key"), str(pki / "a-client.pem")
    for files, named in (
        ((str(tmp_path / "none"), None, None), "none"),
        ((str(junk), None, None), "junk.pem"),
        ((a, str(junk), pem), "junk.pem"),
        ((a, key, str(junk)), "junk.pem"),
        ((a, str(pki / "b-client.key"), pem), "a-client.pem"),
        ((a, str(tmp_path / "none"), pem), "none"),
    ):
        with pytest.raises(OSError, match=named) as caught:
            tls.context(*files)
        assert caught.value.strerror


def test_an_encrypted_key_is_refused_and_nobody_is_asked(pki, tmp_path):
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "ec", "-in", pki / "a-client.key", "-aes128", "-passout", "pass:x", "-out", locked],
        check=True,
        capture_output=True,
    )
    with Took() as took, pytest.raises(OSError, match=r"locked\.key"):
        tls.context(str(pki / "a.pem"), str(locked), str(pki / "a-client.pem"))
    assert took.seconds < 5


def test_a_server_without_tls_and_one_that_says_nothing(pki, echo, scripted, channel_to):
    context = tls.context(str(pki / "a.pem"))
    assert failure_of(channel_to(echo().target, tls=context)).code is Code.UNAVAILABLE
    silent = scripted(lambda peer, number: peer.until_closed())
    with Took() as took:
        assert failure_of(channel_to(silent.target, tls=context), timeout=0.3).code is Code.DEADLINE_EXCEEDED
    assert took.seconds < 2
    garbage = scripted(lambda peer, number: (peer.send(b"garbage" * 100), peer.until_closed()))
    assert failure_of(channel_to(garbage.target, tls=context)).code is Code.UNAVAILABLE
