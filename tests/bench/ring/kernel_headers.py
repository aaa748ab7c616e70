"""What bcc's own headers want from the kernel's sources, where the machine has no kernel headers.

bcc compiles with the headers of the running kernel. The measured program uses no structure of the kernel, so
that the user-space headers (linux-libc-dev) and these few lines are enough: nothing of it reaches the
consumer, which is what is measured.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

_FILES = {
    "linux/kconfig.h": "#define CONFIG_BPF_SYSCALL\n",
    "linux/types.h": """#include_next <linux/types.h>
#ifndef BENCH_TYPES_H
#define BENCH_TYPES_H
typedef __u8 u8; typedef __u16 u16; typedef __u32 u32; typedef __u64 u64;
typedef __s8 s8; typedef __s16 s16; typedef __s32 s32; typedef __s64 s64;
typedef unsigned long size_t, uintptr_t; typedef _Bool bool;
#endif
""",
    "linux/log2.h": "",
    "asm/page.h": f"#define PAGE_SIZE {mmap.PAGESIZE}UL\n",
    "uapi/linux/bpf.h": "",  # bcc has its own copy in front
    "uapi/linux/if_packet.h": "",
}


def write(root: Path) -> dict[str, str]:
    """Put them below ``root``. Returns the environment that makes bcc use them."""
    for name, text in _FILES.items():
        path = root / "include" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {"BCC_KERNEL_SOURCE": str(root)}


def compiler_flags() -> list[str]:
    """The user-space headers, after everything else."""
    return [
        word
        for folder in (f"/usr/include/{os.uname().machine}-linux-gnu", "/usr/include")
        for word in ("-idirafter", folder)
    ]


def installed() -> bool:
    """Whether bcc finds the running kernel's own."""
    release = os.uname().release
    return Path(f"/lib/modules/{release}/build").exists() or Path("/sys/kernel/kheaders.tar.xz").exists()
