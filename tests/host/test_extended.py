"""The extended API (ibv_wr_*) against the stand-in provider: every count equals the application's own."""

from __future__ import annotations

import errno
import itertools
import os

import pytest

from doubles.provider.application import INLINE, RC, SIGNALED, UD, Application
from host.tap import Tap
from host.test_data_path import a_cluster_node, assert_equal, one_qp

SGE, SGE_LIST, INLINE_DATA, INLINE_DATA_LIST = range(4)
OPCODES = range(11)
BATCH_LIMIT = 32


def batch(
    application: Application, qp: int = 0, *, times: int = 1, messages: int = 1, opcode: int = 2,
    flags: int = 0, sges: int = 1, length: int = 100, handle: int = -1, peer: int = 0,
    setter: int = SGE, abort: bool = False,
) -> None:  # fmt: skip
    application.tell(
        "batch", qp, times, messages, opcode, flags, sges, length, handle, peer, setter, int(abort)
    )


@pytest.fixture
def contexts(application: Application) -> dict[int, str]:
    made = one_qp(application)
    assert application.tell("extend", 0) == 1
    return made


@pytest.mark.parametrize("setter", range(4))
def test_each_builder_setter_and_flag_is_counted_as_posted(tap, application, contexts, setter):
    for opcode, sges, length in itertools.product(OPCODES, (0, 1, 5), (0, 1, 4096, 1 << 31)):
        batch(application, opcode=opcode, sges=sges, length=length, setter=setter, flags=SIGNALED | INLINE)
        batch(application, opcode=opcode, sges=sges, length=length, setter=setter, messages=3)
    assert_equal(tap, application, contexts)


def test_what_is_given_up_or_refused_is_not_counted(tap, application, contexts):
    batch(application, messages=5, abort=True)
    application.tell("fail", errno.ENOMEM, 0)
    batch(application, messages=5)
    application.tell("fail", 0, 0)
    assert tap.counters(application.pid) == {}
    batch(application, times=2, messages=4)
    assert_equal(tap, application, contexts)
    assert list(tap.probes.object.map("batches").batches()) == []


@pytest.mark.parametrize("messages", [31, 32, 33, 64, 65, 1000])
def test_a_batch_of_any_length_is_counted(tap, application, contexts, messages):
    batch(application, messages=messages, sges=2, setter=SGE_LIST)
    assert_equal(tap, application, contexts)


def test_a_long_batch_that_is_given_up_is_a_counted_loss(tap, application, contexts):
    batch(application, messages=BATCH_LIMIT, abort=True)
    assert tap.lost() == {}
    batch(application, messages=BATCH_LIMIT + 5, abort=True)
    assert tap.lost() == {"batch_too_long": 1}
    ((_, count),) = tap.counters(application.pid).items()
    assert count.totals[0] == 5


def test_datagrams_are_counted_by_peer(tap, application):
    contexts = one_qp(application, kind=UD)
    application.tell("extend", 0)
    for last in (1, 2):
        application.tell("ah", 1, last)
    for handle, peer in itertools.product((0, 1), (900, 901)):
        batch(application, messages=3, handle=handle, peer=peer, length=7)
    assert_equal(tap, application, contexts)
    assert [record.ah_peer_gid for record in tap.handles] == ["fe80::1", "fe80::2"]


def test_both_apis_of_one_queue_pair_share_its_counters(tap, application, contexts):
    batch(application, times=3)
    application.send(0, opcode=2, times=4)
    ((_, count),) = tap.counters(application.pid).items()
    assert count.totals[0] == 7
    assert list(contexts.values()) == ["mlx5_0"]


@pytest.mark.parametrize("cpus", [1, 2])
@pytest.mark.parametrize("entry", ["push", "endbr64_push"])
def test_counts_stay_exact_when_threads_share_processors_and_queue_pairs(bpf, doubles, entry, cpus):
    double = doubles(entry)
    with (
        Tap(double) as tap,
        Application(double.driver, sorted(os.sched_getaffinity(0))[:cpus]) as application,
    ):
        contexts = a_cluster_node(application)
        for qp in range(0, 12, 2):
            application.tell("extend", qp)
        application.tell("limits", (1 << 14) + 1, 64)
        application.tell("mixed", 13, 8, 2000)
        assert_equal(tap, application, contexts)


def test_a_message_of_before_the_attach_is_not_half_counted(bpf, double):
    """Batches complete while nothing is attached; what is attached later begins with the next."""
    with Application(double.driver) as application:
        one_qp(application, kind=RC)
        application.tell("extend", 0)
        batch(application, times=10)
        with Tap(double) as tap:
            batch(application, times=3, length=10)
            ((_, count),) = tap.counters(application.pid).items()
            assert count.totals[:2] == (3, 30)
