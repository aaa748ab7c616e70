"""Containers in the guest, run by crun from OCI bundles: the image of the agent, and workloads.

What a kubelet would ask its runtime for is written down as a runtime specification (config.json), so that no
daemon and no registry is needed. A workload has this machine's /usr for its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vm.harness import Machine, Process

#: As the chart asks for them; docs/install.md.
CAPABILITIES = ("SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH", "SYS_RESOURCE")
_MOUNTS = [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"]},
]


@dataclass
class Container:
    """One container of a pod. ``id``: 64 hexadecimal digits; ``pod``: a UUID."""

    id: str
    pod: str
    argv: Sequence[str]
    root: Path
    capabilities: Sequence[str] = ()
    #: place in the container -> place in the guest
    binds: Mapping[str, str] = field(default_factory=dict)
    read_only: Sequence[str] = ()
    host_pid: bool = False
    environment: Sequence[str] = ("PATH=/usr/sbin:/usr/bin", "HOME=/tmp")
    memory_only: Sequence[str] = ()

    def specification(self) -> dict[str, Any]:
        """Its config.json."""
        granted = [f"CAP_{name}" for name in self.capabilities]
        namespaces = ["mount", "ipc", "uts", "cgroup", *([] if self.host_pid else ["pid"])]
        mounts: list[dict[str, Any]] = list(_MOUNTS)
        if "/dev" not in self.binds:
            # The runtime makes null, zero, random and the like in it.
            options = ["nosuid", "mode=755"]
            mounts.append({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": options})
        mounts += [
            {"destination": place, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"]}
            for place in self.memory_only
        ]
        mounts += [
            {
                "destination": place,
                "type": "bind",
                "source": source,
                "options": ["rbind", "ro" if place in self.read_only else "rw"],
            }
            for place, source in self.binds.items()
        ]
        slice_ = f"kubepods-pod{self.pod.replace('-', '_')}.slice"
        return {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "cwd": "/tmp",
                "args": list(self.argv),
                "env": list(self.environment),
                "noNewPrivileges": True,
                "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), granted),
            },
            "root": {"path": str(self.root), "readonly": True},
            "mounts": mounts,
            "linux": {
                "namespaces": [{"type": name} for name in namespaces],
                "cgroupsPath": f"/kubepods.slice/{slice_}/cri-containerd-{self.id}.scope",
            },
        }

    def start(self, machine: Machine) -> Process:
        """Run it; its output is the process's, and ending that one's session ends it."""
        bundle = machine.share / "bundles" / self.id
        bundle.mkdir(parents=True)
        (bundle / "config.json").write_text(json.dumps(self.specification()))
        crun = ["crun", "--root", "/run/crun", "--cgroup-manager", "cgroupfs"]
        return machine.start([*crun, "run", "--bundle", bundle, self.id[:12]])


def workload_root(machine: Machine) -> Path:
    """A root in which only mount points are, and the links of a merged /usr."""
    root = machine.share / "workload"
    if not root.exists():
        for name in ("usr", "etc", "dev", "sys", "proc", "tmp"):
            (root / name).mkdir(parents=True)
        for name in ("bin", "sbin", "lib", "lib64"):
            (root / name).symlink_to(f"usr/{name}")
    return root


def workload(machine: Machine, identity: str, pod: str, argv: Sequence[str]) -> Container:
    """A container that may use the RDMA devices."""
    shared = {place: place for place in ("/usr", "/etc", "/dev", "/sys")}
    root = workload_root(machine)
    return Container(identity, pod, argv, root, ("IPC_LOCK",), shared)
