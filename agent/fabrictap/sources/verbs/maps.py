"""What a process has mapped, and its files as it sees them: in any mount namespace, deleted or replaced.

Nothing is executed and no directory of the process is walked: a mapped file is opened through
``/proc/PID/map_files``, which leads to the very file that is mapped (it takes CAP_SYS_ADMIN or
CAP_CHECKPOINT_RESTORE), or else by name below ``/proc/PID/root``, and then only if it is still the same file.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from fabrictap.sources.verbs.elf import Refused

#: Bytes of /proc/PID/maps read at the most: 65,530 mappings (vm.max_map_count) of usual length.
_MAX_MAPS = 8 << 20
_MAX_MOUNTS = 4 << 20
_MAX_DESCRIPTORS = 65536
_DELETED = " (deleted)"


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of /proc/PID/maps. ``path`` is empty for memory without a file."""

    start: int
    end: int
    permissions: str
    offset: int
    device: str
    inode: int
    path: str

    @property
    def executable_file(self) -> bool:
        return "x" in self.permissions and self.inode != 0 and self.path.startswith("/")

    @property
    def file(self) -> tuple[str, int]:
        return self.device, self.inode


@dataclass(frozen=True, slots=True)
class Identity:
    """A file as it is now: what is in it has not changed while this is the same."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


def mappings(pid: int, *, writable: bool = False) -> list[Mapping]:
    """Executable files and, with ``writable``, memory that the process can write, in the order of addresses.

    Raises Refused (``process_gone``, ``unreadable``, ``too_large``).
    """
    text = _read(f"/proc/{pid}/maps", _MAX_MAPS)
    found = []
    for line in text.decode("utf-8", "surrogateescape").splitlines():
        fields = line.split(None, 5)
        if len(fields) < 5 or not ("x" in fields[1] or (writable and "w" in fields[1])):
            continue
        start, _, end = fields[0].partition("-")
        try:
            mapping = Mapping(
                int(start, 16), int(end, 16), fields[1], int(fields[2], 16), fields[3], int(fields[4]),
                fields[5] if len(fields) > 5 else "",
            )  # fmt: skip
        except ValueError:
            continue
        found.append(mapping)
    return found


def open_mapped(pid: int, mapping: Mapping) -> int:
    """A descriptor of the mapped file, which the caller closes. Raises Refused."""
    direct = f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}"
    try:
        return _open_regular(direct)
    except PermissionError:
        pass  # without CAP_SYS_ADMIN: by name
    except FileNotFoundError:
        raise Refused("process_gone", f"process {pid} has gone or unmapped {mapping.path}") from None
    except OSError as error:
        raise Refused("unreadable", f"{mapping.path}: {error.strerror}") from None
    if mapping.path.endswith(_DELETED):
        raise Refused("deleted", f"{mapping.path}: reaching it takes CAP_SYS_ADMIN")
    try:
        descriptor = _open_regular(f"/proc/{pid}/root{mapping.path}")
    except OSError as error:
        raise Refused("unreadable", f"{mapping.path}: {error.strerror}") from None
    # On overlay and btrfs stat and maps tell different devices. A file put in its place has another inode.
    if os.fstat(descriptor).st_ino != mapping.inode:
        os.close(descriptor)
        raise Refused("replaced", f"{mapping.path} is another file now")
    return descriptor


def identity(descriptor: int) -> Identity:
    status = os.fstat(descriptor)
    return Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def mapped_identity(pid: int, mapping: Mapping) -> Identity | None:
    """The identity of a mapped file without opening it; None where that is not possible."""
    try:
        status = os.stat(f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}")  # noqa: PTH116 - hot
    except OSError:
        return None
    return Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def file_system(pid: int, device: int) -> str | None:
    """The type of the file system ``device`` (st_dev) as the process has it mounted; None if it has not."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        text = _read(f"/proc/{pid}/mountinfo", _MAX_MOUNTS)
    except Refused:
        return None
    for line in text.decode("utf-8", "surrogateescape").splitlines():
        mounted, _, source = line.partition(" - ")
        fields = mounted.split(None, 3)
        if len(fields) > 2 and fields[2] == wanted:
            return source.split(" ", 1)[0]
    return None


def descriptors_on(pid: int, prefix: str) -> set[int]:
    """The process's descriptors of files whose path begins with ``prefix``."""
    found: set[int] = set()
    try:
        names = os.listdir(f"/proc/{pid}/fd")  # noqa: PTH208 - hot
    except OSError:
        return found
    for name in names[:_MAX_DESCRIPTORS]:
        try:
            if os.readlink(f"/proc/{pid}/fd/{name}").startswith(prefix):  # noqa: PTH115 - hot
                found.add(int(name))
        except OSError:
            continue  # closed meanwhile
    return found


def start_time(pid: int) -> int | None:
    """When a process started, clock ticks after boot: with the pid, its identity. None if it has gone."""
    try:
        text = _read(f"/proc/{pid}/stat", 4096)
        # The command stands in parentheses and may hold any character.
        return int(text[text.rindex(b")") + 2 :].split()[19])
    except (Refused, ValueError, IndexError):
        return None


def _open_regular(path: str) -> int:
    # A device or a FIFO behind a mapping is not to be opened: that may block or do something.
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - hot
        raise OSError(0, "not a regular file")
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)


def _read(path: str, limit: int) -> bytes:
    try:
        with open(path, "rb", 0) as file:  # noqa: PTH123 - hot
            found = bytearray()
            while chunk := file.read(1 << 16):
                found += chunk
                if len(found) > limit:
                    raise Refused("too_large", f"{path} has more than {limit >> 20} MiB")
            return bytes(found)
    except (FileNotFoundError, ProcessLookupError):
        raise Refused("process_gone", f"{path} has gone") from None
    except OSError as error:
        raise Refused("unreadable", f"{path}: {error.strerror}") from None
