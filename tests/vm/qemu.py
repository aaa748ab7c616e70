"""The virtual hardware: kernel, console, the host's files over 9p, and the port that init.sh listens on."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vm.initramfs import MissingError

HERE = Path(__file__).resolve().parent
PROGRAM = "qemu-system-x86_64"
#: How kernel.sh ends when nothing that could be installed here would help.
NOT_IN_ARCHIVE = 3

# The guest is a test fixture: no time for mitigations and audit, and an oops is an end, not a line in a log.
COMMAND_LINE = (
    "console=ttyS0 panic=-1 oops=panic mitigations=off audit=0 apparmor=0 selinux=0 nokaslr"
    " random.trust_cpu=on cryptomgr.notests rcupdate.rcu_expedited=1 no_timer_check"
)
DEATHS = re.compile(r"Kernel panic - not syncing.*|Oops: .*|fabrictap-vm: FAILED.*")


@dataclass(frozen=True)
class Options:
    """What a test may choose."""

    memory: str
    cpus: int
    extra: Sequence[str]
    interactive: bool
    kernel_arguments: str


@dataclass(frozen=True)
class Hardware:
    """What the VM is made of. `exports` are (9p tag, "ro" or "rw", host directory)."""

    kernel: Path
    initrd: Path
    console_log: Path
    exports: Sequence[tuple[str, str, Path]]
    options: Options

    def command(self, accelerator: str, channel: int) -> list[str]:
        """The argv of QEMU; `channel` is a connected socket it inherits."""
        options = self.options
        console = f"stdio,id=console,signal=off,mux=off,logfile={_quoted(self.console_log)}"
        if not options.interactive:
            console = f"file,id=console,path={_quoted(self.console_log)}"
        quiet = "loglevel=3" if options.interactive else "loglevel=5"
        argv = [PROGRAM, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
        argv += ["-machine", "q35,usb=off", "-m", options.memory, "-smp", str(options.cpus)]
        argv += {
            "kvm": ["-accel", "kvm", "-cpu", "host"],
            # x86-64-v2 and no more: AVX is dear when it is emulated, and glibc would use it for every strlen.
            "tcg": ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "Nehalem,+rdrand,+rdseed,+smap,+smep"],
        }[accelerator]
        argv += ["-kernel", str(self.kernel / "boot" / f"vmlinuz-{self.kernel.name}")]
        argv += ["-initrd", str(self.initrd)]
        argv += ["-append", f"{COMMAND_LINE} {quiet} {options.kernel_arguments}".strip()]
        argv += ["-chardev", console, "-serial", "chardev:console"]
        argv += ["-chardev", f"socket,id=channel,fd={channel}"]
        argv += ["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=channel,name=fabrictap"]
        for tag, mode, path in self.exports:
            readonly = ",readonly=on" if mode == "ro" else ""
            filesystem = f"local,id={tag},path={_quoted(path)},security_model=none,multidevs=remap{readonly}"
            argv += ["-fsdev", filesystem, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
        return [*argv, *options.extra]


@dataclass
class Qemu:
    """One QEMU process: started by `start`, certainly gone after `end`, also when this process is killed."""

    hardware: Hardware
    log: Path
    channel: socket.socket | None = None
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self, accelerator: str) -> socket.socket:
        """The connected end of the guest's port; end-of-file there means that the VM is gone."""
        if shutil.which(PROGRAM) is None:
            raise MissingError(f"{PROGRAM} not found, the VM runs in it: apt-get install qemu-system-x86")
        ours, theirs = socket.socketpair()
        interactive = self.hardware.options.interactive
        with self.log.open("ab") as log, theirs:
            self._process = subprocess.Popen(
                # QEMU goes when this thread goes, also when nobody can tidy up any more.
                ["setpriv", "--pdeathsig", "KILL", *self.hardware.command(accelerator, theirs.fileno())],
                stdin=None if interactive else subprocess.DEVNULL,
                stdout=None if interactive else log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                # Ctrl-C in the terminal is for the test run, which then ends the VM in order.
                start_new_session=not interactive,
            )
        self.channel = ours
        return ours

    def wait(self, timeout: float) -> bool:
        """True when it has ended."""
        if self._process is None:
            return True
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def end(self) -> None:
        """At once and for certain; harmless when repeated."""
        if self._process is not None:
            self._process.kill()  # its threads go with it, and it has no children
            self._process.wait()
            self._process = None
        if self.channel is not None:
            self.channel.close()
            self.channel = None


class UnobtainableError(MissingError):
    """Nothing that can be installed here helps: the archive does not have it, or it is another one."""


def find_kernel(wanted: str | Path | None = None, *, suite: str | None = None) -> Path:
    """The directory of an unpacked kernel: a path, a version, or None for this distribution's.

    With ``suite``, the one of this Debian release. Fetches what is not there yet.
    """
    if isinstance(wanted, Path):
        if not (wanted / "boot" / f"vmlinuz-{wanted.name}").exists():
            raise MissingError(f"no boot/vmlinuz-{wanted.name} in {wanted}: make one with tests/vm/kernel.sh")
        return wanted
    argv = [str(HERE / "kernel.sh"), *(["--suite", suite] if suite else []), *([wanted] if wanted else [])]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode == NOT_IN_ARCHIVE:
        raise UnobtainableError(done.stderr.strip())
    if done.returncode != 0:
        raise MissingError(f"no kernel for the VM:\n{done.stderr.strip()}")
    return Path(done.stdout.strip())


def _quoted(path: Path) -> str:
    return str(path).replace(",", ",,")
