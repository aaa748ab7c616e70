"""A pytest plugin: certificates made by openssl."""

import subprocess

import pytest


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    """Two authorities, each with a server certificate for localhost and a client certificate."""
    folder = tmp_path_factory.mktemp("pki")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    (folder / "san").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    for ca in ("a", "b"):
        openssl(
            *new, "-x509", "-keyout", f"{ca}.key", "-out", f"{ca}.pem", "-days", "2", "-subj", f"/CN={ca}"
        )
        sign = ["x509", "-req", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-CAcreateserial", "-days", "2"]
        for role in ("server", "client"):
            name = f"{ca}-{role}"
            openssl(*new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
            openssl(*sign, "-in", f"{name}.csr", "-extfile", "san", "-out", f"{name}.pem")
    return folder
