"""A bare root file system of a Debian release, as a tarball in the cache.

    python packaging/bareroot.py bookworm    prints its path; debootstrap, as root, makes what is not there

From the archive that apt uses on this machine. The cache: FABRICTAP_CACHE, or ~/.cache/fabrictap.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from building import fail, run, say

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
CACHE = Path(
    os.environ.get("FABRICTAP_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fabrictap"
)


def tarball(suite: str) -> Path:
    """The root of a release, as bookworm, from the cache or made now."""
    made = CACHE / "roots" / f"{suite}.tar.gz"
    if made.exists():
        return made
    if shutil.which("debootstrap", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None:
        fail("debootstrap is missing: apt-get install debootstrap")
    if os.geteuid() != 0:
        fail(f"no {made}, and debootstrap, which makes it, takes root")
    say(f"debootstrap {suite}")
    made.parent.mkdir(parents=True, exist_ok=True)
    tree = made.parent / f".{suite}-{os.getpid()}"
    try:
        include = "--include=ca-certificates"
        run(["debootstrap", "--variant=minbase", f"--keyring={KEYRING}", include, suite, tree, *_mirror()])
        for package in (tree / "var/cache/apt/archives").glob("*.deb"):
            package.unlink()
        # Of the machine that made it; whoever runs the root puts its own in their place.
        for name in ("resolv.conf", "hostname"):
            (tree / "etc" / name).unlink(missing_ok=True)
            (tree / "etc" / name).touch()
        unfinished = made.with_suffix(".new")
        run(["tar", "-C", tree, "-I", "gzip -1", "-cf", unfinished, "."])
        unfinished.rename(made)
    finally:
        shutil.rmtree(tree, ignore_errors=True)
    return made


def _mirror() -> list[str]:
    """The Debian archive among apt's sources; none: debootstrap's own choice."""
    query = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian"]
    said = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return [uri for uri in said if "security" not in uri][:1]


if __name__ == "__main__":
    print(tarball(sys.argv[1] if len(sys.argv) == 2 else fail("which release? As in bookworm")))
