"""Root file systems of Debian releases, bare as debootstrap makes them, to install packages into.

    with Root.of("bookworm", directory) as root:
        root.run(["apt-get", "install", "-y", "/w/fabrictap.deb"], {"/w": dist}).check()
        with root.booted() as system:          # a real systemd, process 1 of its own pid namespace
            system.run(["systemctl", "start", "fabrictap"]).check()

Commands run by systemd-nspawn: file system, /proc, /run and /tmp are the root's own, the kernel and the
network are this machine's. What was downloaded (a bare root, packages) is kept in the cache.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
CACHE = Path(
    os.environ.get("FABRICTAP_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fabrictap"
)
#: What the agent needs of a container that is not one: see docs/install.md.
POWERS = ("--capability=all", "--system-call-filter=bpf perf_event_open")
#: Nobody is asked, downloads are kept for the next root, in a directory that apt's own user cannot write to.
APT = """\
APT::Get::Assume-Yes "true";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Binary::apt::APT::Keep-Downloaded-Packages "true";
"""
_PROXIES = ("http_proxy", "https_proxy", "no_proxy")
_NOISE = "Attempted to remove disk file system under"


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    command: str
    rc: int
    stdout: str
    stderr: str

    def check(self) -> Ran:
        """Itself, or AssertionError with everything the command said."""
        assert self.rc == 0, f"{self.command!r} ended with {self.rc}\n{self.stdout}{self.stderr}"
        return self


class Root:
    """A root file system at ``path``."""

    def __init__(self, path: Path, suite: str) -> None:
        self.path = path
        self.suite = suite

    @classmethod
    @contextmanager
    def of(cls, suite: str, directory: Path) -> Iterator[Root]:
        """A new bare root of a release below ``directory``, removed in the end."""
        path = directory / suite
        path.mkdir(parents=True)
        try:
            subprocess.run(["tar", "-C", path, "-xpf", _tarball(suite)], check=True)
            (path / "etc/apt/apt.conf.d/90tests").write_text(APT)
            yield cls(path, suite)
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def run(
        self,
        command: Sequence[str | Path],
        binds: Mapping[str, Path] | None = None,
        *,
        timeout: float = 240,
        options: Sequence[str] = (),
    ) -> Ran:
        """Run a command in it. ``binds``: places in the root -> directories of this machine, read-only."""
        archives = CACHE / "roots" / f"archives-{self.suite}"
        (archives / "partial").mkdir(parents=True, exist_ok=True)
        argv = [
            *_nspawn(self.path),
            *POWERS,
            "--pipe",
            "--resolv-conf=copy-host",
            "--setenv=DEBIAN_FRONTEND=noninteractive",
            "--setenv=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            *(f"--setenv={name}={os.environ[name]}" for name in _PROXIES if name in os.environ),
            f"--bind={archives}:/var/cache/apt/archives",
            *(f"--bind-ro={source}:{place}" for place, source in (binds or {}).items()),
            *options,
            "--",
            *map(str, command),
        ]
        return _ran(argv, timeout, shown=" ".join(map(str, command)))

    def install(self, *what: str | Path, binds: Mapping[str, Path] | None = None) -> Ran:
        """apt-get install."""
        return self.shell(shlex.join(["apt-get", "-qq", "install", *map(str, what)]), binds)

    def shell(self, line: str, binds: Mapping[str, Path] | None = None) -> Ran:
        """A line of shell, in /w where that is bound. Package lists that are too old are read anew."""
        options = ["--chdir=/w"] if "/w" in (binds or {}) else []
        done = self.run(["sh", "-c", line], binds, options=options)
        if done.rc != 0 and ("404 " in done.stderr or "Unable to fetch" in done.stderr):
            self.run(["apt-get", "-qq", "update"]).check()
            done = self.run(["sh", "-c", line], binds, options=options)
        return done

    @contextmanager
    def booted(self) -> Iterator[System]:
        """The root with its own systemd, until the block ends."""
        log = self.path.with_suffix(".console")
        argv = [*_nspawn(self.path), *POWERS, "--console=pipe", "--boot"]
        with log.open("wb") as output:
            # A cgroup v2 tree for the container, also where this machine has v1 for itself.
            env = {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
            keeper = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=env
            )
        try:
            yield System(_leader(keeper, log))
        finally:
            # Twice: at once, and not in the order in which a node is shut down.
            keeper.send_signal(signal.SIGTERM)
            keeper.send_signal(signal.SIGTERM)
            try:
                keeper.wait(30)
            except subprocess.TimeoutExpired:
                keeper.kill()
                keeper.wait()


class System:
    """A running systemd. ``leader``: its process id on this machine."""

    def __init__(self, leader: int) -> None:
        self._leader = leader

    def run(self, command: Sequence[str | Path], timeout: float = 60) -> Ran:
        """Run a command in all of its namespaces."""
        argv = ["nsenter", "-t", str(self._leader), "-a", "--", *map(str, command)]
        return _ran(argv, timeout, shown=" ".join(map(str, command)))

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Properties of a unit, as ``systemctl show`` has them."""
        said = self.run(["systemctl", "show", unit, *(f"--property={name}" for name in properties)]).check()
        return dict(line.split("=", 1) for line in said.stdout.splitlines())


def missing() -> str:
    """What these roots need and this machine lacks, with the command that provides it; "" if nothing."""
    packages = [
        package
        for program, package in (("debootstrap", "debootstrap"), ("systemd-nspawn", "systemd-container"))
        if shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None
    ]
    if packages:
        return f"apt-get install {' '.join(packages)}"
    return "" if os.geteuid() == 0 else "run the tests as root"


def _nspawn(path: Path) -> list[str]:
    return ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", f"--directory={path}"]


def _ran(argv: list[str], timeout: float, shown: str) -> Ran:
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
    )
    # Where no systemd runs on this machine, nspawn's tidying up of /run complains.
    lines = [line for line in done.stderr.splitlines(keepends=True) if not line.startswith(_NOISE)]
    return Ran(shown, done.returncode, done.stdout, "".join(lines).rstrip("\n"))


def _leader(keeper: subprocess.Popen[bytes], log: Path) -> int:
    """Process 1 of the container, once its systemd answers."""
    deadline = time.monotonic() + 60
    children = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children")
    while time.monotonic() < deadline and keeper.poll() is None:
        for pid in children.read_text().split():
            system = System(int(pid))
            state = system.run(["systemctl", "is-system-running", "--wait"]).stdout.strip()
            if state in ("running", "degraded"):
                return int(pid)
        time.sleep(0.1)
    raise AssertionError(f"systemd did not start\n{log.read_text(errors='replace')}")


def _tarball(suite: str) -> Path:
    """A bare root of a release, from the cache or made now."""
    argv = [sys.executable, REPOSITORY / "packaging" / "bareroot.py", suite]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())
