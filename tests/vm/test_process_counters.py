"""Counting by process, asked of a real kernel: with Soft-RoCE, which has nothing that could count so."""

from __future__ import annotations

import json
import sys

from vm.harness import Machine

SCRIPT = """
import errno, json
from fabrictap.sources.process_counters.messages import Statistics
client = Statistics()
numbers = {name: number for number, name in client.devices().items()}
device = numbers["rxe0"]
def mode():
    found = client.mode(device, 1)
    return [found.mode, found.mask]
said = {"before": mode()}
try:
    client.count_by_process(device, 1)
    said["on"] = mode()
    said["counters"] = len(client.counters(device, 1))
    client.count_no_more(device, 1)
except OSError as error:
    said["refused"] = errno.errorcode[error.errno]
said["after"] = mode()
try:
    client.mode(device, 9)
except OSError as error:
    said["no port"] = errno.errorcode[error.errno]
print(json.dumps(said))
"""


def test_the_kernel_understands_what_is_asked(machine: Machine) -> None:
    said = json.loads(machine.run([sys.executable, "-c", SCRIPT], timeout=60).check().stdout)
    assert said["before"] == said["after"] == [0, 0]
    assert said["no port"] == "EINVAL"
    if "refused" in said:
        assert said["refused"] in ("EOPNOTSUPP", "ENOTSUP")
    else:
        # rxe of 6.1: it has counters of ports, so that this is let through, and binds nothing to them.
        assert said["on"] == [1, 3]
        assert said["counters"] == 0
