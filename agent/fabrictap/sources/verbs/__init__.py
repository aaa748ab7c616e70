"""What software asks for: ``source`` waits on the probes, which ``probes`` loads and ``providers`` places
(with ``provider_helper``, a process of its own); ``control`` folds connections and memory, ``posts`` posted
work; ``uverbs`` names what the system-call level knows by number only."""
