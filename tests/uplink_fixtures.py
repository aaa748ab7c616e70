"""A pytest plugin with the fixtures of the uplink's tests."""

import time

import pytest

from fabrictap.config import Duration, Otlp
from fabrictap.config import Signal as Settings
from fabrictap.export.uplink import Uplink
from otlp_receiver import Receiver


@pytest.fixture
def receiver():
    made = Receiver()
    made.port = made.start("127.0.0.1:0")
    yield made
    made.stop()


@pytest.fixture
def uplink_to():
    """Makes started uplinks whose back-off is short; they are closed after the test."""
    made = []

    def make(address, queue=64, **settings):
        settings.setdefault("timeout", Duration(5))
        if isinstance(address, int):
            address = f"http://127.0.0.1:{address}"
        signal = Settings(endpoint=address, **settings)
        uplink = Uplink(Otlp(metrics=signal, traces=signal, logs=signal, queue=queue), 0.02, 0.1)
        uplink.start()
        made.append(uplink)
        return uplink

    yield make
    for uplink in made:
        started = time.monotonic()
        uplink.close()
        assert time.monotonic() - started < 4
