"""Builds the container image from the deb in dist/, into dist/fabrictap_VERSION_oci.tar.

    python packaging/container/build.py [--base debian:12-slim]

By buildah, without a daemon and, unless --base names another, without a registry: the base is a bare Debian
that debootstrap makes. The same sources, base and package archive make the same image.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bareroot import tarball
from building import ROOT, WORK, epoch, fail, run, say, version

HERE = Path(__file__).resolve().parent
LOCAL_BASE = "localhost/fabrictap-base"


def buildah(*arguments: str | Path) -> str:
    """Runs it on a store of our own; what it prints."""
    store = WORK / "containers"
    where = ["--root", store / "storage", "--runroot", store / "run", "--storage-driver", "vfs"]
    return run(["buildah", *where, *arguments], env={"BUILDAH_ISOLATION": "chroot"}).strip()


def local_base(suite: str) -> str:
    """The name of an image that holds a bare Debian and nothing else."""
    name = f"{LOCAL_BASE}:{suite}"
    container = buildah("from", "scratch")
    try:
        buildah("add", "--quiet", container, tarball(suite), "/")
        buildah("commit", "--quiet", container, name)
    finally:
        buildah("rm", container)
    return name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", metavar="IMAGE", help="a Debian image; default: made here by debootstrap")
    parser.add_argument("--suite", metavar="NAME", default="bookworm", help="of the base that is made here")
    parser.add_argument("--output", metavar="DIR", type=Path, default=ROOT / "dist")
    parser.add_argument("--deb", metavar="FILE", type=Path, help="default: the one in the output directory")
    options = parser.parse_args()
    if shutil.which("buildah") is None:
        fail("buildah is missing: apt-get install buildah")
    output: Path = options.output.resolve()
    debs = [options.deb] if options.deb else sorted(output.glob(f"fabrictap_{version()}_*.deb"))
    if not debs or not debs[0].exists():
        fail(f"no fabrictap_{version()}_*.deb in {output}: make deb")
    context = WORK / "context"
    shutil.rmtree(context, ignore_errors=True)
    context.mkdir(parents=True)
    shutil.copyfile(debs[0], context / "fabrictap.deb")
    shutil.copyfile(HERE / "tree.sh", context / "tree.sh")
    name = f"fabrictap:{version()}"
    archive = output / f"fabrictap_{version()}_oci.tar"
    archive.unlink(missing_ok=True)
    try:
        base = options.base or local_base(options.suite)
        say(f"image {name} from {base}")
        arguments = [f"--build-arg=BASE={base}", f"--build-arg=VERSION={version()}", f"--timestamp={epoch()}"]
        buildah("build", "-f", HERE / "Containerfile", *arguments, "--no-cache", "-q", "-t", name, context)
        buildah("push", "--quiet", name, f"oci-archive:{archive}:{name}")
    finally:
        shutil.rmtree(WORK / "containers", ignore_errors=True)
    print(archive)


if __name__ == "__main__":
    main()
