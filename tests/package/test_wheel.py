"""The wheels: complete, for the C library that their tags say, and installed where there is no compiler."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pip
import pytest

from package.conftest import BUILT, RELEASES, REPOSITORY, page
from package.roots import Root


def wheel(dist: Path, version: str) -> Path:
    (made,) = dist.glob(f"fabrictap-*-cp{version.replace('.', '')}-*.whl")
    return made


@pytest.mark.parametrize("version", BUILT)
def test_a_wheel_has_everything_and_no_sources(dist, version):
    with zipfile.ZipFile(wheel(dist, version)) as archive:
        names = archive.namelist()
    modules = {path.stem for path in (REPOSITORY / "ext").glob("*.pyx")}
    tag = f"cpython-{version.replace('.', '')}-x86_64-linux-gnu"
    assert {name for name in names if name.endswith(".so") and name.startswith("fabrictap/")} == {
        f"fabrictap/ext/{module}.{tag}.so" for module in modules
    }
    assert {Path(name).name for name in names if name.endswith(".bpf.o")} == {
        path.name.replace(".bpf.c", ".bpf.o") for path in (REPOSITORY / "probes").glob("*.bpf.c")
    }
    package = REPOSITORY / "agent" / "fabrictap"
    for source in package.rglob("*.py"):
        assert f"fabrictap/{source.relative_to(package)}" in names
    assert [name for name in names if re.search(r"\.(c|h|pyx|pxd)$", name)] == []


@pytest.mark.parametrize("version", BUILT)
def test_a_wheel_names_no_directory_of_the_machine_that_built_it(dist, version):
    with zipfile.ZipFile(wheel(dist, version)) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            assert str(REPOSITORY).encode() not in content, name
            assert str(Path.home()).encode() + b"/" not in content, name


@pytest.mark.parametrize("version", BUILT)
def test_it_needs_no_newer_c_library_than_its_tag_says(dist, version, tmp_path):
    made = wheel(dist, version)
    tags = re.findall(r"manylinux_(\d+)_(\d+)_x86_64", made.name)
    assert tags, made.name
    floor = min((int(major), int(minor)) for major, minor in tags)
    with zipfile.ZipFile(made) as archive:
        archive.extractall(tmp_path)
    for module in tmp_path.rglob("*.so"):
        said = subprocess.check_output(["objdump", "-p", module], text=True)
        assert set(re.findall(r"(?:RPATH|RUNPATH)\s+(\S+)", said)) <= {"$ORIGIN/../../fabrictap.libs"}, module
        needs = {tuple(map(int, one.split("."))) for one in re.findall(r"GLIBC_([\d.]+)\b", said)}
        assert max(needs, default=(0,))[:2] <= floor, module
        libraries = set(re.findall(r"NEEDED\s+(\S+)", said))
        outside = {one for one in libraries if not (tmp_path / "fabrictap.libs" / one).exists()}
        assert outside <= {"libc.so.6", "libm.so.6", "libz.so.1", "ld-linux-x86-64.so.2"}, module


def test_it_installs_from_a_folder_and_runs_without_a_compiler(root: Root, dist, needed, tmp_path):
    """``pip install fabrictap --no-index --find-links DIR`` in a root that has python3 and nothing else."""
    root.install("python3").check()
    assert root.run(["which", "cc"]).rc != 0
    folder = tmp_path / "wheels"
    folder.mkdir()
    tag = "cp" + RELEASES[root.suite].replace(".", "")
    for one in (wheel(dist, RELEASES[root.suite]), *(needed / tag).glob("*.whl")):
        shutil.copy2(one, folder)
    # Debian's python3 comes without pip; the one that runs here will do.
    binds = {"/w": folder, "/p/pip": Path(pip.__file__).parent}
    make, install, look = page("wheel")
    root.shell(make, binds).check()
    root.shell(f"PYTHONPATH=/p {install}", binds).check()
    doctor = root.shell(f"{look} --json")
    assert doctor.rc in (0, 1), doctor.stderr
    assert {"kernel", "GPUs"} <= {check["what"] for check in json.loads(doctor.stdout)}
    command = look.split()[0]
    ran = root.run([command, "run", "--simulate", "hgx-h100", "--duration", "3s"]).check()
    assert "SIMULATED NODE hgx-h100" in ran.stderr
    assert "Traceback" not in ran.stderr
