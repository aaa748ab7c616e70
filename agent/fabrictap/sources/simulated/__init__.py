"""The source ``simulated``: a made-up node for looking at metrics, flows and dashboards without hardware.

``profiles`` says what the node has, ``script`` what happens on it and when, ``gpus``, ``ports`` and
``applications`` turn that into the series and the ledger that the real sources fill, with their code where
that knows names. Nothing here is measured; everything that leaves the agent meanwhile carries the resource
attribute ``fabrictap.simulated``.
"""
