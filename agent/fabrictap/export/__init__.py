"""The way out: the series table and the finished spans become OTLP, over gRPC and into a file.

``exporter`` is what the node uses. ``metrics`` and ``spans`` make serialized requests, ``resource`` says
who sends them. ``outbox`` is a bounded queue with a thread of its own, so that nothing here blocks the
node; ``uplink`` (with ``endpoint`` and ``retry``) and ``file`` are what stands behind one;
``otlpjson`` is how a request looks in the file. Nothing in this folder knows a source.
"""
