"""Every way in which data can leave or enter a GPU or its memory without the CPU, on this node, now.

``facts`` reads the node's /sys, /proc and /dev (or copies of them), ``processes`` and ``pci`` what is on it,
``watch`` what a running agent knows. Each subject is a module with one function over a :class:`facts.Node`
that returns ways; ``ways`` lists them, ``report`` shows them. The daemon imports nothing of this.

What could not be looked at is never "no": it is unknown, with the reason, and with the worst it could be.
"""
