"""A shell in the VM with its two RDMA devices, or a script run there: `make vm`, `make vm SCRIPT=path`."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

from vm.harness import Machine, MachineError, MissingError, Process

WELCOME = """\
The host's root is / here, read-only; {share} is shared. rxe0 has 10.9.0.1, rxe1 10.9.0.2, for example:
  ib_write_bw -F -d rxe0 -x 1 & sleep 1; ib_write_bw -F -d rxe1 -x 1 -n 200 10.9.0.1
exit ends the VM.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("script", nargs="?", type=Path, help="a program or script to run instead of a shell")
    parser.add_argument("args", nargs="*", help="its arguments")
    parser.add_argument("--kernel", help="a version as of tests/vm/kernel.sh")
    options = parser.parse_args()
    if options.script is None and not sys.stdin.isatty():
        parser.error("a shell needs a terminal; give a script to run one without")
    try:
        with terminal(), Machine(options.kernel, interactive=options.script is None) as machine:
            machine.devices()
            print(
                f"VM: kernel {machine.version}, {machine.accelerator}, up in {machine.boot_seconds:.0f} s\r"
            )
            if options.script is None:
                return shell(machine)
            program = machine.put(options.script)
            argv = [program] if os.access(program, os.X_OK) else ["bash", program]
            return follow(machine, machine.start([*argv, *options.args]))
    except (MissingError, MachineError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def shell(machine: Machine) -> int:
    """bash on the guest's serial console, which is this terminal."""
    print(WELCOME.format(share=machine.share).replace("\n", "\r\n"), end="", flush=True)
    size = os.get_terminal_size()
    script = (
        f"stty -F /dev/ttyS0 sane rows {size.lines} cols {size.columns};"
        " exec setsid -cw bash -i <>/dev/ttyS0 >&0 2>&0"
    )
    environment = {"TERM": os.environ.get("TERM", "linux")}
    process = machine.start(script, env=environment)
    machine.wait_for(lambda: process.rc is not None, float("inf"))
    return process.rc or 0


def follow(machine: Machine, process: Process) -> int:
    """Show both outputs as they come; the rc at the end."""
    shown = {"stdout": 0, "stderr": 0}
    while True:
        ended = process.rc is not None
        for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)):
            text = getattr(process, name)
            stream.write(text[shown[name] :])
            stream.flush()
            shown[name] = len(text)
        if ended:
            return process.rc or 0
        with contextlib.suppress(TimeoutError):
            machine.wait_for(lambda: process.rc is not None, 0.2)


@contextlib.contextmanager
def terminal() -> Iterator[None]:
    """QEMU makes the terminal raw and, when killed, leaves it so."""
    if not sys.stdin.isatty():
        yield
        return
    saved = termios.tcgetattr(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSAFLUSH, saved)


if __name__ == "__main__":
    sys.exit(main())
