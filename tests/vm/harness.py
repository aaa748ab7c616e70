"""A virtual machine with real RDMA (Soft-RoCE) on any Linux machine, booted once for many commands.

    with Machine() as machine:
        machine.devices()
        print(machine.run(["ibv_devices"]).check().stdout)
        server = machine.start("exec ib_write_bw -d rxe0 -F")
        ...
        server.stop()

The guest's root is this machine's root, read-only, at the same paths, with an empty /tmp, /run and /var/tmp.
What both sides share lies under `machine.share`, at the same path on both. Elsewhere the guest may keep what
it once read of a file that the host changes later: hand over changing files with `put`. A file that is mapped
shared and written (the ring) belongs into the guest's own /run: 9p does not keep such mappings coherent.

Without KVM everything in the guest is 10 to 20 times slower than here: choose timeouts accordingly.
"""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from vm import initramfs
from vm.jobs import CommandTimeoutError, Process, Result
from vm.qemu import DEATHS, Hardware, Options, Qemu, find_kernel

__all__ = ["CommandTimeoutError", "Machine", "MachineError", "MissingError", "Process", "Result"]

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
BOOT_TIMEOUT_S = 180.0
KVM_TIMEOUT_S = 15.0
"""A nested KVM can hang without a word; one that works says something within 2 s."""
SHARE_PREFIX = "fabrictap-vm-"
COVERED = tuple(Path(p) for p in ("/tmp", "/run", "/var/tmp"))
"""Where the guest has memory of its own instead of the host's files."""

MissingError = initramfs.MissingError


class MachineError(RuntimeError):
    """The VM did not boot, panicked or went away; the text carries the end of its console."""


class Machine:
    """The VM: boots on `with`, is gone afterwards whatever happens.

    kernel: directory or version as of kernel.sh, None for this distribution's.
    qemu_opts: further QEMU arguments, for example a network card.
    mounts: host directories below /tmp, /run or /var/tmp that the guest is to see, read-only, at the same
    path; the checkout and the Python environment are added where they lie there.
    interactive: the guest's console is this terminal.

    The environment's FABRICTAP_VM_ACCEL=kvm or tcg decides how it runs; otherwise KVM is tried first where
    /dev/kvm may be used. The VM ends with the thread that booted it, at the latest.
    """

    def __init__(
        self,
        kernel: str | Path | None = None,
        *,
        memory: str = "2G",
        cpus: int = 2,
        qemu_opts: Sequence[str] = (),
        mounts: Sequence[Path] = (),
        boot_timeout: float = BOOT_TIMEOUT_S,
        interactive: bool = False,
        kernel_arguments: str = "",
    ) -> None:
        self._kernel_wanted = kernel
        self._options = Options(memory, cpus, list(qemu_opts), interactive, kernel_arguments)
        self._boot_timeout = boot_timeout
        wanted = dict.fromkeys(path.resolve() for path in (*mounts, REPOSITORY, Path(sys.prefix)))
        self._mounts = [path for path in wanted if any(path.is_relative_to(c) for c in COVERED)]
        self._numbers = itertools.count(1)
        self._processes: dict[int, Process] = {}
        self._news = threading.Condition()
        self._sending = threading.Lock()
        self._ready = self._gone = False
        self._qemu: Qemu | None = None
        self.accelerator = ""
        self.boot_seconds = 0.0
        self.share = Path()
        self.kernel = Path()

    def __enter__(self) -> Machine:
        self.kernel = find_kernel(self._kernel_wanted)
        # A short path, the same in the guest.
        remove_leftovers()
        self.share = Path(tempfile.mkdtemp(prefix=f"{SHARE_PREFIX}{os.getpid()}-", dir="/tmp"))
        try:
            (self.share / "jobs").mkdir()
            self._boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(
        self,
        command: str | Sequence[str | Path],
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
        cwd: str | Path = "/tmp",
    ) -> Result:
        """Run an argv, or a bash script given as one string; CommandTimeoutError where it was killed."""
        return self.start(command, env, cwd).wait(timeout)

    def start(
        self,
        command: str | Sequence[str | Path],
        env: Mapping[str, str] | None = None,
        cwd: str | Path = "/tmp",
    ) -> Process:
        """The same in the background. What still runs when the machine goes away ends with it."""
        argv = ["bash", "-c", command] if isinstance(command, str) else [str(part) for part in command]
        lines = [f"export {name}={shlex.quote(value)}" for name, value in (env or {}).items()]
        # A shell without a terminal, as init.sh, starts what it puts in the background deaf to Ctrl-C. And
        # busybox's shell prefers its own programs to those in PATH: env does not.
        lines += [f"cd {shlex.quote(str(cwd))} || exit 127"]
        lines += [f"exec /usr/bin/env --default-signal=INT,QUIT -- {shlex.join(argv)}"]
        number = next(self._numbers)
        process = Process(self, number, command if isinstance(command, str) else shlex.join(argv))
        process.directory.mkdir()
        (process.directory / "command").write_text("\n".join(lines) + "\n")
        self._processes[number] = process
        self.send(f"start {number}")
        return process

    def devices(self) -> None:
        """Two RDMA devices on one wire: rxe0 (10.9.0.1, netdev d0) and rxe1 (10.9.0.2, netdev d1)."""
        self.run(["bash", self.put(HERE / "two_devices.sh")], timeout=120).check()

    def put(self, source: Path, name: str | None = None) -> Path:
        """Copy a file or directory of the host into the share; its path there, the same on both sides."""
        target = self.share / (name or source.name)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copy2(source, target)
        return target

    def read(self, path: str | Path) -> str:
        """The text of a file of the guest, from anywhere in it."""
        return self.run(["cat", path]).check().stdout

    @property
    def version(self) -> str:
        """The guest's kernel, as `uname -r` says it."""
        return self.kernel.name

    @property
    def console(self) -> str:
        """Everything the guest's kernel (from warnings up) and init have said."""
        try:
            return (self.share / "console.log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def wait_for(
        self, condition: Callable[[], bool], timeout: float, complaint: str = "condition not met"
    ) -> None:
        """Wait until a condition holds; TimeoutError with the complaint, MachineError when the VM is gone."""
        deadline = time.monotonic() + timeout
        with self._news:
            while not condition():
                if self._gone:
                    raise MachineError(self._obituary("the VM is gone"))
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"{complaint} within {timeout:g} s")
                self._news.wait(min(left, 0.05))

    def send(self, request: str) -> None:
        """One line to the guest's init.sh."""
        if self._gone or self._qemu is None or self._qemu.channel is None:
            raise MachineError(self._obituary("the VM is gone"))
        try:
            with self._sending:
                self._qemu.channel.sendall(request.encode() + b"\n")
        except OSError:
            raise MachineError(self._obituary("the VM is gone")) from None

    def close(self) -> None:
        """End the VM at once and remove the share; harmless when repeated."""
        if self._qemu is not None:
            self._qemu.end()
        if self.share != Path():
            shutil.rmtree(self.share, ignore_errors=True)

    def _boot(self) -> None:
        began = time.monotonic()
        mounts = [("share", "rw", self.share)]
        mounts += [(f"mount{number}", "ro", path) for number, path in enumerate(self._mounts)]
        initrd = self.share / "initrd"
        initrd.write_bytes(initramfs.build(self.kernel, mounts))
        exports = [("root", "ro", Path("/")), ("kernel", "ro", self.kernel), *mounts]
        hardware = Hardware(self.kernel, initrd, self.share / "console.log", exports, self._options)
        wanted = os.environ.get("FABRICTAP_VM_ACCEL", "auto")
        usable = ["kvm", "tcg"] if os.access("/dev/kvm", os.R_OK | os.W_OK) else ["tcg"]
        for accelerator in usable if wanted == "auto" else [wanted]:
            self._gone = False
            self._qemu = Qemu(hardware, self.share / "qemu.log")
            threading.Thread(target=self._listen, args=(self._qemu.start(accelerator),), daemon=True).start()
            try:
                if accelerator == "kvm" and wanted == "auto":
                    self.wait_for(lambda: "fabrictap-vm" in self.console, KVM_TIMEOUT_S)
                self.wait_for(lambda: self._ready, self._boot_timeout, "the VM did not boot")
            except (MachineError, TimeoutError) as error:
                if accelerator == "kvm" and wanted == "auto":
                    self._qemu.end()
                    continue
                raise MachineError(self._obituary(str(error).splitlines()[0])) from None
            self.accelerator = accelerator
            self.boot_seconds = time.monotonic() - began
            return

    def _listen(self, channel: socket.socket) -> None:
        """The guest's replies, until the VM is gone."""
        try:
            with channel.makefile("r", encoding="ascii", errors="replace") as lines:
                for line in lines:
                    match line.split():
                        case ["ready"]:
                            self._ready = True
                        case ["pid" | "exit" as kind, number, value]:
                            self._processes[int(number)].changed(kind, int(value))
                    with self._news:
                        self._news.notify_all()
        except (OSError, ValueError):  # closed by `close`, or reset by a dying QEMU
            pass
        with self._news:
            if self._qemu is not None and self._qemu.channel is channel:
                self._gone = True
            self._news.notify_all()

    def _obituary(self, what: str) -> str:
        deaths = [m.group(0) for m in DEATHS.finditer(self.console)]
        log = self.share / "qemu.log"
        said = log.read_text(errors="replace").strip() if log.exists() else ""
        tail = "\n".join(self.console.splitlines()[-40:])
        cause = f": {deaths[0]}" if deaths else ""
        return f"{what}{cause}\n--- qemu\n{said}\n--- end of the console (kernel {self.kernel.name})\n{tail}"


def remove_leftovers() -> None:
    """The shares of test runs that were killed; their VMs have ended with them."""
    for share in Path("/tmp").glob(f"{SHARE_PREFIX}*-*"):
        owner = share.name.removeprefix(SHARE_PREFIX).split("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            shutil.rmtree(share, ignore_errors=True)
