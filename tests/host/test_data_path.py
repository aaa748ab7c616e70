"""The probes of the data path against a stand-in provider: every count equals the application's own."""

from __future__ import annotations

import errno
import os

import pytest

from doubles.provider.application import INLINE, RC, SIGNALED, UC, UD, Application
from doubles.provider.builder import Double
from fabrictap.ext.records import POST_KEY_SIZE, POST_SIZE, SIZE_SLOTS
from host.tap import Tap, truth

SGE_LIMIT = 64
CHAIN_LIMIT = (1 << 14) + 1
BOUNDED_CHAIN_LIMIT = 64


def open_devices(application: Application, *names: str) -> dict[int, str]:
    """A context on each named device, in order; context address -> name."""
    contexts = {}
    for device, name in enumerate(names):
        application.tell("device", name)
        contexts[application.tell("context", device)] = name
    return contexts


def one_qp(application: Application, qpn: int = 17, kind: int = RC) -> dict[int, str]:
    contexts = open_devices(application, "mlx5_0")
    application.tell("qp", 0, qpn, kind)
    return contexts


def a_cluster_node(application: Application) -> dict[int, str]:
    """Two devices, three contexts, queue pairs of all types with numbers that repeat across devices."""
    contexts = open_devices(application, "mlx5_0", "rocep1s0f0")
    contexts[application.tell("context", 0)] = "mlx5_0"
    for context in range(3):
        for number, kind in enumerate((RC, UC, UD, RC)):
            application.tell("qp", context, 100 + number + (10 if context == 2 else 0), kind)
        application.tell("srq", context, 1)
    for last in range(1, 6):
        application.tell("ah", 1, last)
    return contexts


def assert_equal(tap: Tap, application: Application, contexts: dict[int, str]) -> None:
    """Compare everything, and the losses with what the application knows to be beyond the limits."""
    own = application.tell("counts")
    assert tap.counters(application.pid) == truth(own, contexts)
    expected = {"chain_too_long": own["long_chains"], "too_many_sges": own["long_lists"]}
    assert tap.lost() == {reason: count for reason, count in expected.items() if count}


@pytest.mark.parametrize("entry", ["push", "endbr64_push", "single_stepped", "endbr64_single_stepped"])
def test_posts_are_counted_whatever_the_first_instruction_is(bpf, doubles, entry):
    double = doubles(entry)
    with Tap(double) as tap, Application(double.driver) as application:
        contexts = a_cluster_node(application)
        application.tell("limits", CHAIN_LIMIT, SGE_LIMIT)
        application.tell("mixed", 3, 1, 300)
        assert_equal(tap, application, contexts)


def test_each_opcode_flag_and_list_length_is_counted_as_posted(tap, application):
    contexts = one_qp(application)
    for opcode in range(12):
        application.send(0, opcode=opcode, flags=SIGNALED, sges=2, length=1000)
        application.send(0, opcode=opcode, flags=INLINE, sges=1, length=opcode)
        application.send(0, opcode=opcode, sges=0)
    for sges in range(SGE_LIMIT + 1):
        application.send(0, chain=3, sges=sges, length=7, flags=INLINE | SIGNALED)
        application.recv(0, chain=2, sges=sges, length=11)
    assert_equal(tap, application, contexts)


def test_each_size_falls_into_the_slot_whose_bounds_hold_it(tap, application):
    contexts = one_qp(application)
    for power in range(32):
        for size in {max(0, (1 << power) - 1), 1 << power, (1 << power) + 1}:
            application.send(0, length=size)
    application.send(0, sges=64, length=(1 << 32) - 1)  # beyond what any message can be
    assert_equal(tap, application, contexts)


@pytest.mark.parametrize("cpus", [1, 2])
def test_counts_stay_exact_when_threads_share_processors(bpf, double, cpus):
    """Where the kernel is preemptible, threads also interrupt each other's probes."""
    with (
        Tap(double) as tap,
        Application(double.driver, sorted(os.sched_getaffinity(0))[:cpus]) as application,
    ):
        contexts = a_cluster_node(application)
        application.tell("limits", CHAIN_LIMIT, SGE_LIMIT)
        application.tell("mixed", 11, 8, 3000)
        assert_equal(tap, application, contexts)


def test_the_bounded_walk_is_exact_up_to_its_bound_and_counts_each_chain_beyond(bpf, double):
    with Tap(double, bounded=True) as tap, Application(double.driver) as application:
        contexts = a_cluster_node(application)
        application.tell("limits", BOUNDED_CHAIN_LIMIT, SGE_LIMIT)
        for chain in (1, 63, 64, 65, 1000):
            application.send(0, chain=chain)
            application.recv(1, chain=chain)
            application.tell("shared", 0, 1, chain, 1, 50)
        application.tell("mixed", 5, 8, 1000)
        assert application.tell("counts")["long_chains"] > 6
        assert_equal(tap, application, contexts)


def test_a_chain_is_walked_as_far_as_the_deepest_send_queues_need(tap, application):
    contexts = one_qp(application)
    application.tell("limits", CHAIN_LIMIT, SGE_LIMIT)
    application.send(0, chain=CHAIN_LIMIT)
    assert tap.lost() == {}
    application.send(0, chain=CHAIN_LIMIT + 1)
    application.recv(0, chain=CHAIN_LIMIT + 500)
    assert_equal(tap, application, contexts)
    assert tap.lost() == {"chain_too_long": 2}


def test_a_list_beyond_the_limit_is_counted_as_lost_and_its_first_elements_as_bytes(tap, application):
    contexts = one_qp(application)
    application.tell("limits", CHAIN_LIMIT, SGE_LIMIT)
    application.send(0, times=3, sges=70, length=10)
    assert_equal(tap, application, contexts)
    assert tap.lost() == {"too_many_sges": 3}


def test_an_opcode_of_the_future_never_passes_for_a_receive(tap, application):
    one_qp(application)
    application.send(0, opcode=128)
    application.send(0, opcode=300)
    ((what, count),) = tap.counters(application.pid).items()
    assert what[2:6] == (0, 17, RC, 127)
    assert count.totals[0] == 2


# --- datagrams and their address handles ----------------------------------------------------------


def test_datagrams_are_counted_by_peer(tap, application):
    contexts = one_qp(application, kind=UD)
    for last in (1, 2):
        application.tell("ah", 1, last)
    for handle in (0, 1):
        for peer in (900, 901):
            application.send(0, times=3, chain=2, opcode=2, handle=handle, peer=peer)
    assert len(tap.counters(application.pid)) == 4
    assert [record.ah_peer_gid for record in tap.handles] == ["fe80::1", "fe80::2"]
    assert {record.pid for record in tap.handles} == {application.pid}
    application.send(0, opcode=2, handle=1, peer=900)
    moved = tap.counters(application.pid)
    own = truth(application.tell("counts"), contexts)
    assert moved.items() <= own.items()
    assert {what[-2:] for what in moved} == {(900, 2)}


def test_a_handle_made_again_at_the_same_address_is_another_peer(tap, application):
    one_qp(application, kind=UD)
    application.tell("ah", 1, 1)
    application.send(0, handle=0, peer=900)
    application.tell("rewind")
    application.tell("ah", 1, 2)
    application.send(0, handle=1, peer=900)
    assert {what[-1] for what in tap.counters(application.pid)} == {1, 2}
    assert [record.ah_peer_gid for record in tap.handles] == ["fe80::1", "fe80::2"]


def test_a_handle_without_gid_does_not_inherit_the_peer_that_its_address_had(tap, application):
    one_qp(application, kind=UD)
    application.tell("ah", 1, 1)
    application.tell("rewind")
    application.tell("ah", 0, 0)
    application.send(0, handle=1, peer=900)
    assert {what[-1] for what in tap.counters(application.pid)} == {0}


def test_a_handle_that_the_provider_refuses_is_no_peer(tap, application):
    one_qp(application, kind=UD)
    application.tell("fail", errno.ENOMEM, 0)
    assert application.tell("ah", 1, 1) == 0
    assert tap.poll() == []


def test_a_full_ring_buffer_costs_records_and_says_how_many(bpf, double):
    with Tap(double, event_buffer=4096) as tap, Application(double.driver) as application:
        one_qp(application, kind=UD)
        for last in range(1, 101):
            application.tell("ah", 1, last)
        kept = len(tap.poll())
        assert 0 < kept < 100
        assert tap.lost() == {"buffer_full": 100 - kept}
        application.send(0, handle=99, peer=1)
        assert {what[-1] for what in tap.counters(application.pid)} == {0}


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "counted"),
    # operations and bytes: of "next" the first request, of "sge" no byte
    [("qp", None), ("wr", None), ("next", (1, 100)), ("sge", (1, 0)), ("list", (1, 0))],
)
def test_unreadable_memory_is_a_counted_loss_and_disturbs_nothing_else(tap, application, where, counted):
    contexts = one_qp(application)
    application.tell("qp", 0, 18, RC)
    application.tell("bad", where, 0)
    assert tap.lost() == {"memory_fault": 1}
    found = {what[3]: count.totals[:2] for what, count in tap.counters(application.pid).items()}
    assert found == ({17: counted} if counted else {})
    application.send(1, times=5, chain=3)
    assert tap.counters(application.pid) == truth(application.tell("counts"), contexts)
    assert tap.lost() == {"memory_fault": 1}


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("accepted", [0, 1, 2, 4, 5, 6])
def test_of_a_chain_that_fails_what_the_provider_took_is_counted(bpf, double, bounded, accepted):
    with Tap(double, bounded=bounded) as tap, Application(double.driver) as application:
        contexts = a_cluster_node(application)
        application.tell("fail", errno.ENOMEM, accepted)
        for chain in (1, 2, 5, 60):
            application.send(0, chain=chain, sges=3)
            application.recv(1, chain=chain)
            application.tell("shared", 0, 1, chain, 1, 50)
        application.tell("fail", 0, 0)
        application.send(0, chain=7)
        assert_equal(tap, application, contexts)


def test_at_the_entry_alone_what_the_provider_refuses_is_counted_too(bpf, double):
    """For kernels whose return probes are not safe; and no peers of datagrams there."""
    with Tap(double, returns=False) as tap, Application(double.driver) as application:
        contexts = a_cluster_node(application)
        application.tell("limits", CHAIN_LIMIT, SGE_LIMIT)
        for qp in (0, 1):
            application.send(qp, times=3, chain=70, sges=3)
            application.recv(qp, times=2, chain=5)
        application.tell("shared", 0, 1, 4, 1, 50)
        application.tell("extend", 0)
        application.tell("batch", 0, 5, 3, 2, 0, 2, 10, -1, 0, 1, 0)
        assert_equal(tap, application, contexts)
        application.tell("fail", errno.ENOMEM, 1)
        application.send(4, chain=5)
        assert [count.totals[0] for count in tap.counters(application.pid).values()] == [5]
        assert not any(name.endswith("_return") for name in tap.probes.attached)


@pytest.mark.parametrize("bounded", [False, True])
def test_posts_that_are_counted_when_they_are_made_are_stopped_once(bpf, double, bounded):
    with Tap(double, bounded=bounded, subtract=False) as tap, Application(double.driver) as application:
        contexts = a_cluster_node(application)
        application.tell("limits", CHAIN_LIMIT, SGE_LIMIT)
        for qp in (0, 1):
            for chain in (1, 2, 5, 60):
                application.send(qp, times=3, chain=chain, sges=3)
                application.recv(qp, times=2, chain=chain)
        application.tell("shared", 0, 1, 4, 1, 50)
        assert_equal(tap, application, contexts)
        application.tell("fail", errno.ENOMEM, 1)
        application.send(4, chain=5)
        assert [count.totals[0] for count in tap.counters(application.pid).values()] == [5]
        returned = {name for name, count in tap.probes.attached.items() if count and "_return" in name}
        assert returned == {"create_ah_return"}


def test_counts_are_exact_while_posts_fail_in_many_threads(tap, application):
    contexts = a_cluster_node(application)
    application.tell("limits", CHAIN_LIMIT, SGE_LIMIT)
    application.tell("fail", errno.ENOMEM, 3)
    application.tell("mixed", 7, 8, 2000)
    assert_equal(tap, application, contexts)


def test_a_full_table_loses_what_is_new_and_keeps_the_rest_exact(bpf, double):
    smallest = 16
    with Tap(double, post_memory=1) as tap, Application(double.driver) as application:
        assert tap.map.max_entries == smallest
        contexts = open_devices(application, "mlx5_0")
        for qp in range(smallest + 4):
            application.tell("qp", 0, 100 + qp, RC)
            application.send(qp, times=2, chain=3)
        assert tap.lost() == {"table_full": 4 * 2 * 3}
        own = truth(application.tell("counts"), contexts)
        kept = {what: count for what, count in own.items() if what[3] < 100 + smallest}
        assert tap.counters(application.pid) == kept

        for key, _ in Tap.moved(tap):  # nothing has moved since
            pytest.fail(f"{key.qpn} moved by itself")
        raw, _, _ = next(tap.map.batches(POST_KEY_SIZE + POST_SIZE))
        assert tap.map.delete(raw[:POST_KEY_SIZE])
        assert tap.posts.forget(raw[:POST_KEY_SIZE])
        application.send(smallest + 3)
        assert {what[3] for what in tap.counters(application.pid)} == {100 + smallest + 3}


def test_a_deleted_counter_starts_anew(tap, application):
    contexts = one_qp(application)
    application.send(0, times=9, sges=3, length=1 << 20)
    ((key, post),) = tap.moved()
    assert (key.qpn, post.operations) == (17, 9)
    assert tap.map.delete(key.raw)
    assert not tap.map.delete(key.raw)
    tap.posts.forget(key.raw)
    assert tap.moved() == []
    application.send(0, times=2, length=5)
    ((_, count),) = tap.counters(application.pid).items()
    assert count.totals == (2, 10, 2, 0, 0)
    assert sum(count.sizes) == 2
    assert len(count.sizes) == SIZE_SLOTS
    assert list(contexts.values()) == ["mlx5_0"]


@pytest.mark.parametrize("budget", [1, 1000, 1 << 20])
def test_every_counter_is_read_once_whatever_the_batch(tap, application, budget):
    contexts = a_cluster_node(application)
    application.tell("mixed", 2, 2, 300)
    found = []
    for keys, values, count in tap.map.batches(budget):
        tap.posts.take(keys, values, count, tap.map.cpus)
        found += tap.posts.drain()
    assert len({key.raw for key, _ in found}) == len(found) == len(application.tell("counts")["counters"])
    assert len(contexts) == 3


def test_detached_probes_count_nothing(bpf, double):
    with Tap(double) as tap, Application(double.driver) as application:
        one_qp(application)
        tap.close()
        application.send(0, times=10)
        assert tap.counters(application.pid) == {}


def test_two_processes_with_the_same_addresses_are_told_apart(bpf, double: Double):
    with Tap(double) as tap, Application(double.driver) as one, Application(double.driver) as two:
        for number, application in enumerate((one, two), 1):
            one_qp(application)
            application.send(0, times=number)
        assert {key.pid: post.operations for key, post in tap.moved()} == {one.pid: 1, two.pid: 2}
