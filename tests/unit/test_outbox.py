"""What an outbox keeps compressed: requests that have to wait, and no others; and all arrive as they were."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from fabrictap.export import outbox
from fabrictap.export.outbox import Delivered, Later, Outbox, Outcome, Request
from support import eventually

BODIES = [bytes([number]) * 10_000 for number in range(4)]


class Receiver:
    """Takes requests once it is ``open``, and sends the first ``later`` ones back before."""

    def __init__(self, later: int = 0) -> None:
        self.open = threading.Event()
        self.got: list[bytes] = []
        self.asked = 0
        self._later = later

    def deliver(self, request: Request) -> Outcome:
        self.asked += 1
        if self.asked <= self._later:
            return Later(3600.0)
        assert self.open.wait(30)
        self.got.append(request.body)
        return Delivered()


@pytest.fixture
def boxes() -> Iterator[list[Outbox]]:
    made: list[Outbox] = []
    yield made
    for box in made:
        box.close()


def start(receiver: Receiver, boxes: list[Outbox]) -> Outbox:
    box = Outbox("test", 10, receiver.deliver, receiver.open.set)
    boxes.append(box)
    box.start()
    return box


def packed(box: Outbox) -> list[bool]:
    with box._changed:
        return [held.packed for held in box._waiting]


def test_requests_of_one_export_pass_through_as_they_are(boxes):
    receiver = Receiver()
    box = start(receiver, boxes)
    for body in BODIES:
        box.put(Request(body, 1))
    eventually(lambda: receiver.asked == 1, "the first is under way")
    assert packed(box) == [False] * 3
    receiver.open.set()
    assert box.flush(30)
    assert receiver.got == BODIES


def test_what_waits_for_a_receiver_that_is_away_is_packed_and_arrives_as_it_was(boxes):
    receiver = Receiver(later=1)
    box = start(receiver, boxes)
    box.put(Request(BODIES[0], 1))
    eventually(lambda: packed(box) == [True], "the first has come back")
    for body in BODIES[1:]:
        box.put(Request(body, 1))
    assert packed(box) == [True] * 4
    receiver.open.set()
    assert box.flush(30)
    assert receiver.got == BODIES
    box.put(Request(BODIES[0], 1))
    assert box.flush(30)
    assert receiver.got[-1] == BODIES[0]


def test_what_waits_behind_a_delivery_that_takes_long_is_packed_at_the_next_put(boxes, monkeypatch):
    receiver = Receiver()
    box = start(receiver, boxes)
    for body in BODIES[:3]:
        box.put(Request(body, 1))
    eventually(lambda: receiver.asked == 1, "the first is under way")
    assert packed(box) == [False] * 2
    monkeypatch.setattr(outbox, "PROMPT", 0.0)
    box.put(Request(BODIES[3], 1))
    assert packed(box) == [True] * 3
    receiver.open.set()
    assert box.flush(30)
    assert receiver.got == BODIES
