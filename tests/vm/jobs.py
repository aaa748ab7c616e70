"""Commands in the guest: how they are watched, ended and what they leave behind."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vm.harness import Machine


@dataclass(frozen=True)
class Result:
    """How a command ended. `rc` is a shell's: 128 + signal for a killed one."""

    command: str
    rc: int
    stdout: str
    stderr: str

    def check(self) -> Result:
        """Itself, or AssertionError with everything the command said."""
        assert self.rc == 0, f"{self.command!r} ended with {self.rc}\n{self.stdout}{self.stderr}"
        return self


class CommandTimeoutError(TimeoutError):
    """The command was killed at its timeout; `result` is what it had said until then."""

    def __init__(self, result: Result, timeout: float) -> None:
        super().__init__(
            f"{result.command!r} ran longer than {timeout:g} s and was killed\n{result.stdout}{result.stderr}"
        )
        self.result = result


class Process:
    """A command running in the guest. Its output files can be read from the host while it runs."""

    def __init__(self, machine: Machine, number: int, command: str) -> None:
        self.command = command
        self._machine = machine
        self._number = number
        self._pid: int | None = None
        self._rc: int | None = None
        self.directory = machine.share / "jobs" / str(number)

    @property
    def pid(self) -> int:
        """The process id in the guest: of the program itself for an argv, of bash for a script."""
        self._machine.wait_for(lambda: self._pid is not None, 30, f"{self.command!r} did not start")
        assert self._pid is not None
        return self._pid

    @property
    def rc(self) -> int | None:
        """None while it runs."""
        return self._rc

    @property
    def stdout(self) -> str:
        return self._output("stdout")

    @property
    def stderr(self) -> str:
        return self._output("stderr")

    def _output(self, name: str) -> str:
        try:
            return (self.directory / name).read_text(errors="replace")
        except FileNotFoundError:  # asked for before the guest got to it
            return ""

    def signal(self, number: signal.Signals) -> None:
        """To the command and everything it started (its session)."""
        if self._rc is None:
            self._machine.send(f"signal {self.pid} {int(number)}")

    def stop(self, timeout: float = 30) -> Result:
        """SIGTERM; SIGKILL where it does not end within the timeout."""
        self.signal(signal.SIGTERM)
        try:
            self._machine.wait_for(lambda: self._rc is not None, timeout, "")
        except TimeoutError:
            return self.kill()
        return self._result()

    def kill(self) -> Result:
        self.signal(signal.SIGKILL)
        self._machine.wait_for(lambda: self._rc is not None, 30, f"{self.command!r} survived SIGKILL")
        return self._result()

    def wait(self, timeout: float = 60) -> Result:
        """Its result; a command still running at the timeout is killed and CommandTimeoutError raised."""
        try:
            self._machine.wait_for(lambda: self._rc is not None, timeout, "")
        except TimeoutError:
            self.kill()
            raise CommandTimeoutError(self._result(), timeout) from None
        return self._result()

    def wait_output(self, text: str, timeout: float = 60) -> str:
        """Its stdout as soon as that holds the text; AssertionError when it ends without."""

        def said() -> bool:
            return text in self.stdout or self._rc is not None

        self._machine.wait_for(said, timeout, f"{self.command!r} did not say {text!r}")
        output = self.stdout
        assert text in output, (
            f"{self.command!r} ended with {self._rc} without {text!r}\n{output}{self.stderr}"
        )
        return output

    def _result(self) -> Result:
        assert self._rc is not None
        return Result(self.command, self._rc, self.stdout, self.stderr)

    def changed(self, kind: str, value: int) -> None:
        """For Machine alone: the guest reported something about this job."""
        if kind == "pid":
            self._pid = value
        else:
            self._rc = value
