"""fabrictap: a per-node tap for the GPU interconnect traffic that skips the host CPU.

Data goes one way: probes and counters -> sources -> series and ledger -> insight -> export.
``node.py`` is the only module that knows all of them.
"""

from fabrictap.version import VERSION

__all__ = ["VERSION"]
