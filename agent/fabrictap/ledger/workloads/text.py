"""Words of others made safe: bounded, printable, one line."""

from __future__ import annotations

import re

#: RFC 1123 label (a namespace, a container's name) and subdomain (a pod's name), as Kubernetes checks them
#: (k8s.io/apimachinery/pkg/util/validation).
LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
SUBDOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*")
#: A pod's UID: a UUID, or 32 hexadecimal digits for a static pod (the hash of its manifest).
POD_UID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}")
#: Container ids of every runtime known here are SHA-256 digests or as long.
CONTAINER_ID = re.compile(r"[0-9a-f]{64}")


def clean(raw: bytes | str, limit: int = 256) -> str:
    """``raw`` as printable text of one line, at most ``limit`` characters.

    What is not UTF-8, not printable or breaks a line is written as a backslash escape; what is too long
    ends in three dots.
    """
    if isinstance(raw, bytes):
        raw = raw[: 4 * limit + 4].decode("utf-8", errors="backslashreplace")
    if len(raw) <= limit and raw.isprintable():
        return raw
    made: list[str] = []
    size = 0
    for character in raw:
        part = character
        if not character.isprintable():
            part = character.encode("unicode_escape", errors="backslashreplace").decode("ascii")
        if size + len(part) > limit:
            while made and size > limit - 3:
                size -= len(made.pop())
            return "".join(made) + "..."
        made.append(part)
        size += len(part)
    return "".join(made)
