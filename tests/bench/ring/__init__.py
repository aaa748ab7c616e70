"""Consumers of a BPF ring buffer, and the program that fills it. See bench/ringbuffer.py."""
