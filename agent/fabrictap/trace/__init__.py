"""``fabrictap trace``: what one process, or one connection, does now, line by line.

It attaches probes of its own (``session``), so it works with and without an agent; ``whom`` finds the
process, ``lines`` makes a line of what was recorded, ``summary`` the account at the end, ``command`` runs
it all.
"""
