"""What RDMA netlink lists of each process now, read-only and without the agent."""

from __future__ import annotations

from fabrictap.audit.facts import Denied
from fabrictap.sources.rdma_netlink.client import Client


def owners() -> dict[int, tuple[int, int]] | Denied:
    """Thread id (0 for the kernel) -> (queue pairs, bytes registered)."""
    client = Client(timeout=3.0)
    found: dict[int, tuple[int, int]] = {}
    try:
        for device in list(client.devices())[:64]:
            for pair in client.queue_pairs(device).entries:
                pairs, size = found.get(pair.owner.tid or 0, (0, 0))
                found[pair.owner.tid or 0] = pairs + 1, size
            for region in client.memory_regions(device).entries:
                pairs, size = found.get(region.owner.tid or 0, (0, 0))
                found[region.owner.tid or 0] = pairs, size + region.length
    except OSError as error:
        return Denied("RDMA netlink", error.strerror or str(error))
    finally:
        client.close()
    return found
