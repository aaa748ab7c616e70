"""A pytest plugin with the fixtures of the gRPC client's tests."""

import pytest

from fabrictap.grpc.client import Channel
from grpc_servers import EchoServer, ScriptedServer


@pytest.fixture
def channel_to():
    """Makes channels that are closed after the test."""
    made = []

    def make(target, **named):
        made.append(Channel(target, **named))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def echo():
    """Makes echo servers."""
    made = []

    def make(*arguments, **named):
        made.append(EchoServer(*arguments, **named))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def scripted():
    """Makes scripted servers."""
    made = []

    def make(script):
        made.append(ScriptedServer(script))
        return made[-1]

    yield make
    for one in made:
        one.stop()
