"""What the tests of servers share: a chain of certificates, as a real server has one."""

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

_ROOT = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n"
_INTERMEDIATE = (
    "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n"
    "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
)
_LEAF = (
    "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth\n"
    "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
)


@dataclass(frozen=True)
class Certificates:
    """PEM files of a server called ``localhost``.

    Attributes:
        chain: The server's certificate, and then the intermediate one that signed it.
        key: The server's private key.
        root: The certificate that signed the intermediate one: all that a client knows.
    """

    chain: Path
    key: Path
    root: Path

    def for_server(self) -> ssl.SSLContext:
        """What a server shows."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.chain, self.key)
        return context

    def for_client(self) -> ssl.SSLContext:
        """A client that trusts the root and nobody else."""
        return ssl.create_default_context(cafile=str(self.root))


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=60)


def _sign(folder: Path, name: str, subject: str, extensions: str, issuer: str | None) -> None:
    """Make ``name.key`` and ``name.pem``, signed by ``issuer`` or by itself."""
    (folder / f"{name}.ext").write_text(extensions)
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key")
    _openssl(folder, "req", *key, "-out", f"{name}.csr", "-subj", f"/CN={subject}")
    by = ("-signkey", f"{name}.key") if issuer is None else ("-CA", f"{issuer}.pem", "-CAkey", f"{issuer}.key")
    serial = () if issuer is None else ("-CAcreateserial",)
    _openssl(
        folder, "x509", "-req", "-in", f"{name}.csr", *by, *serial, "-days", "30",
        "-extfile", f"{name}.ext", "-out", f"{name}.pem",
    )  # fmt: skip


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A root, an intermediate and a server's certificate, made by the ``openssl`` command."""
    folder = tmp_path_factory.mktemp("certificates")
    try:
        _sign(folder, "root", "polyloop test root", _ROOT, None)
        _sign(folder, "middle", "polyloop test intermediate", _INTERMEDIATE, "root")
        _sign(folder, "leaf", "localhost", _LEAF, "middle")
    except FileNotFoundError:
        pytest.skip("there is no 'openssl' command here")
    chain = folder / "chain.pem"
    chain.write_text((folder / "leaf.pem").read_text() + (folder / "middle.pem").read_text())
    return Certificates(chain, folder / "leaf.key", folder / "root.pem")
