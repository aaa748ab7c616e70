"""The small root file system the test VM starts from: busybox, the modules for the host's files, init.sh."""

from __future__ import annotations

import lzma
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent

# What must be there before the host's root can be mounted; everything else is loaded by modprobe afterwards.
MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p")


class MissingError(RuntimeError):
    """Something the VM is made of is not on this machine; the text says what and how to get it."""


def build(kernel: Path, mounts: Sequence[tuple[str, str, Path]]) -> bytes:
    """A cpio archive (newc) for `-initrd`.

    `mounts` are (9p tag, "ro" or "rw", path in the guest) beyond the root and the kernel's directory.
    """
    busybox = shutil.which("busybox")
    if busybox is None:
        raise MissingError("busybox not found, the VM boots with it: apt-get install busybox-static")
    program = Path(busybox).read_bytes()
    if b"/ld-linux" in program:
        raise MissingError(f"{busybox} is not static, the VM boots with it: apt-get install busybox-static")
    files: list[tuple[str, int, bytes]] = [
        ("init", 0o100755, (HERE / "init.sh").read_bytes()),
        ("bin", 0o040755, b""),
        ("bin/busybox", 0o100755, program),
        ("dev", 0o040755, b""),
        ("modules", 0o040755, b""),
        ("mounts", 0o100644, "".join(f"{tag} {mode} {path}\n" for tag, mode, path in mounts).encode()),
    ]
    order: list[str] = []
    for path in module_closure(kernel / "lib" / "modules" / kernel.name, MODULES):
        name = path.name.split(".ko")[0] + ".ko"
        order.append(name)
        files.append((f"modules/{name}", 0o100644, _decompressed(path)))
    files.append(("modules/order", 0o100644, " ".join(order).encode()))
    return b"".join(_newc(files))


def module_closure(directory: Path, names: Sequence[str]) -> list[Path]:
    """The files of these modules and of all they depend on, in loading order, without what is built in."""
    depends: dict[str, list[str]] = {}
    by_name: dict[str, str] = {}
    for line in (directory / "modules.dep").read_text().splitlines():
        target, _, rest = line.partition(":")
        depends[target] = rest.split()
        by_name[_module_name(target)] = target
    builtin = {_module_name(line) for line in (directory / "modules.builtin").read_text().split()}
    order: list[Path] = []

    def add(target: str) -> None:
        for dependency in depends[target]:
            add(dependency)
        if directory / target not in order:
            order.append(directory / target)

    for name in names:
        if name in by_name:
            add(by_name[name])
        elif name not in builtin:
            raise MissingError(f"the kernel in {directory} has no module {name}: not usable for the VM")
    return order


def _module_name(path: str) -> str:
    return Path(path).name.split(".ko")[0].replace("-", "_")


def _decompressed(path: Path) -> bytes:
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".zst":  # Ubuntu 24.04 and later; no zstd in Python's library before 3.14
        if shutil.which("zstd") is None:
            raise MissingError(f"{path.name} needs zstd: apt-get install zstd")
        return subprocess.run(["zstd", "-dcq", str(path)], check=True, capture_output=True).stdout
    return path.read_bytes()


def _newc(files: Sequence[tuple[str, int, bytes]]) -> Iterator[bytes]:
    """The "new ASCII" cpio format (kernel: Documentation/driver-api/early-userspace/buffer-format.rst)."""
    # /dev/console must be a node in the archive: without it the kernel gives PID 1 no standard output.
    nodes = [*((n, m, d, 0, 0) for n, m, d in files), ("dev/console", 0o020600, b"", 5, 1)]
    nodes.append(("TRAILER!!!", 0, b"", 0, 0))
    for number, (name, mode, data, major, minor) in enumerate(nodes, start=1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name) + 1, 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        yield header + b"\0" * (-len(header) % 4)
        yield data + b"\0" * (-len(data) % 4)
