"""GPUs, NVSwitches and CPUs as a DCGM host engine that already runs knows them.

``source`` samples and folds. ``session`` is one connection: ``entities`` says what the engine has,
``watches`` what it watches for us, ``fields`` which field means what, ``states`` why a value cannot be had.
``figures`` puts values into series, by ``delivery`` and ``happenings``. A client only: it starts no engine,
pauses no profiling, and takes no lock of a profiler.
"""
