"""A small blocking gRPC client: unary calls of ready-made bytes, over the library h2.

``client`` has the channel and is what others use; ``target`` says where a server is, ``transport`` and
``tls`` are the byte stream to it, ``connection`` is HTTP/2 on that stream, ``message`` is gRPC's framing and
headers, ``status`` what an answer means. No threads (but while a host name is looked up), no wake-ups between
calls, and every call is bounded in time and memory whatever the server does.
"""
