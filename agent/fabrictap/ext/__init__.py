"""Compiled modules, from ext/: what runs per event or per tick, without the GIL where it waits or loops."""
