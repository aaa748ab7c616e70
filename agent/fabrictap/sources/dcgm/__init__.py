"""GPUs, NVSwitches and CPUs as a DCGM host engine that already runs knows them.

``source`` samples and folds, ``session`` is one connection with its groups and watches, ``entities`` says
what the engine has, ``fields`` which field means what, ``states`` why a value cannot be had, ``figures``
puts values into series. A client only: it starts no engine, pauses no profiling, takes no lock of a profiler.
"""
