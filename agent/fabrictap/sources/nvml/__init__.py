"""NVIDIA GPUs as the driver's own library shows them.

``source`` is what the runner drives. Its fast tier reads the counters of NVLink and PCIe (``fast``,
``batch``, ``wanted``), its slow tier the rest: ``devices`` finds GPUs, MIG devices and links, ``health``
reads states, errors and memory, ``processes`` who uses them, ``events`` waits for XIDs. ``library`` loads
and unloads libnvidia-ml.so.1, ``patience`` makes calls that may hang, ``fields`` says what each number
means, ``figures`` writes series.
"""
