"""gRPC targets as text."""

import pytest

from fabrictap.grpc import target


@pytest.mark.parametrize(
    ("text", "authority", "host", "places", "path"),
    [
        ("host:1", "host:1", "host", (("host", 1),), ""),
        ("host", "host:443", "host", (("host", 443),), ""),
        ("dns:host:1", "host:1", "host", (("host", 1),), ""),
        ("dns:///host:1", "host:1", "host", (("host", 1),), ""),
        ("dns:///[::1]:1", "[::1]:1", "::1", (("::1", 1),), ""),
        ("[fe80::1%eth0]:1", "[fe80::1]:1", "fe80::1%eth0", (("fe80::1%eth0", 1),), ""),
        ("ipv4:1.2.3.4:5,6.7.8.9:10", "1.2.3.4:5", "1.2.3.4", (("1.2.3.4", 5), ("6.7.8.9", 10)), ""),
        ("ipv6:[::1]:1", "[::1]:1", "::1", (("::1", 1),), ""),
        ("ipv6:::1", "[::1]:443", "::1", (("::1", 443),), ""),
        ("unix:/a/b", "localhost", "localhost", (), "/a/b"),
        ("unix:a", "localhost", "localhost", (), "a"),
        ("unix:///a/b", "localhost", "localhost", (), "/a/b"),
        ("unix-abstract:a", "localhost", "localhost", (), "\0a"),
    ],
)
def test_every_form(text, authority, host, places, path):
    assert target.parse(text) == target.Target(authority, host, places, path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":1",
        "host:",
        "host:x",
        "host:0",
        "host:65536",
        "a b:c:d",
        "[::1",
        "host/path:1",
        "unix:",
        "unix://",
        "unix:" + "x" * 108,
        "unix:a\0b",
        "dns://8.8.8.8/host:1",
        "ipv4:",
    ],
)
def test_what_is_none(text):
    with pytest.raises(ValueError, match=r"no path|not host:port|no port|not supported|107 bytes"):
        target.parse(text)


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("localhost:1", True),
        ("127.0.0.1:1", True),
        ("[::1]:1", True),
        ("ipv4:127.0.0.1:1,127.1.2.3:1", True),
        ("ipv4:127.0.0.1:1,10.0.0.1:1", False),
        ("unix:/a", True),
        ("collector:1", False),
        ("127.example.org:1", False),
        ("10.127.0.1:1", False),
    ],
)
def test_what_is_on_this_machine_for_certain(text, local):
    assert target.parse(text).local is local
