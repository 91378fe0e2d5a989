"""Keys and certificates of a federation over a network: make them, and admit its sites.

`init` makes one folder for the server and one for each site, which holds all that the site needs
and nothing that another one must not have. `admit` tells a running SuperLink which sites may
connect.
"""

import argparse
import json
import os
import secrets
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

YEARS = 5  # until certificates end
SECRET_BYTES = 32
CONTROL_PORT = 8000
PATIENCE = 60.0  # seconds for a SuperLink to come up
LOOPBACK = ("localhost", "127.0.0.1")
USES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
    *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)
CA_USE = x509.KeyUsage(**{use: use == "key_cert_sign" for use in USES})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words after `fedtuners federation`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")
    init = actions.add_parser("init", help="make certificates, keys and secrets")
    init.add_argument("--host", nargs="+", required=True, help="names or addresses of the server")
    init.add_argument("--sites", nargs="+", required=True, help="names of the sites")
    init.add_argument("--control", default=f"127.0.0.1:{CONTROL_PORT}", help="of the connection")
    init.add_argument("--keep", action="store_true", help="leave keys that are there already")
    admit = actions.add_parser("admit", help="let the sites connect to a running SuperLink")
    for action in (init, admit):
        action.add_argument("--folder", type=Path, default=Path("federation"))
        action.add_argument("--connection", default="site", help="its name in Flower's config.toml")


def main(parsed: argparse.Namespace) -> int:
    """Do what was asked; returns the exit code."""
    if parsed.action == "admit":
        return admit(parsed.folder, parsed.connection)
    if parsed.keep and (parsed.folder / "ca.key").exists():
        connect(parsed.folder, parsed.connection, parsed.control)
        print(f"{parsed.folder} holds keys already: they stay")
        return 0
    connection(parsed.folder, parsed.connection, parsed.control)  # refuses before keys are made
    init(parsed.folder, parsed.host, parsed.sites)
    connect(parsed.folder, parsed.connection, parsed.control)
    print(f"{parsed.folder}: server/ stays here; sites/<name>/ goes to each site, by a safe way")
    return 0


def init(folder: Path, hosts: list[str], sites: list[str]) -> None:
    """Make a CA, the server's certificate, the executors' secrets, every site's key and its peers'.

    Raises
    ------
    FileExistsError
        If there are keys already: new ones would lock out every site that has the old.
    OSError
        If one of the files cannot be written; none of them is left then.
    ValueError
        If a site's name cannot name a folder, or comes twice.
    """
    for site in sites:
        if not site.replace("-", "").isalnum() or sites.count(site) > 1:
            raise ValueError(f"site '{site}': a name is letters, digits and '-', and each its own")
    if (folder / "ca.key").exists():
        raise FileExistsError(
            f"{folder} holds keys already, and new ones would lock out its sites: move it away, or "
            "choose another --folder"
        )
    ca_key, server_key = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    ca = certificate("fedtuners federation CA", ca_key)
    names = list(dict.fromkeys([*hosts, *LOOPBACK]))
    server = certificate(hosts[0], server_key, names, (ca, ca_key))
    public, chain = pem(ca), pem(server) + pem(ca)
    readable = {"server/ca.crt": public, "server/server.crt": chain}
    hidden = {"ca.key": private(ca_key), "server/server.key": private(server_key)}
    hidden["server/executor.secret"] = secrets.token_bytes(SECRET_BYTES)
    keys = {site: ec.generate_private_key(ec.SECP384R1()) for site in sites}
    peers = b"".join(openssh(key) + f" {site}\n".encode() for site, key in keys.items())
    for site, key in keys.items():
        readable |= {f"sites/{site}/ca.crt": public, f"sites/{site}/peers.pub": peers}
        readable[f"server/nodes/{site}.pub"] = openssh(key)
        hidden[f"sites/{site}/node.key"] = private(key, serialization.PrivateFormat.OpenSSH)
        hidden[f"sites/{site}/executor.secret"] = secrets.token_bytes(SECRET_BYTES)
    write_all(folder, hidden, readable)


def certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    hosts: list[str] | None = None,
    issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None,
) -> x509.Certificate:
    """A server's certificate for `hosts`, signed by `issuer`; without them a CA's own."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    above, signer = (issuer[0].subject, issuer[1]) if issuer else (subject, key)
    now = datetime.now(UTC)
    authority = x509.SubjectKeyIdentifier.from_public_key(signer.public_key())
    builder = (
        x509.CertificateBuilder(above, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # a site's clock may be behind
        .not_valid_after(now + timedelta(days=365 * YEARS))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority), False
        )
    )
    if issuer is None:
        builder = builder.add_extension(CA_USE, critical=True)
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName(map(_host, hosts)), False)
    return builder.sign(signer, hashes.SHA384())


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def pem(certificate: x509.Certificate) -> bytes:
    """A certificate as text."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def private(
    key: ec.EllipticCurvePrivateKey,
    form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8,
) -> bytes:
    """A private key as text, without a passphrase."""
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def openssh(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public key in OpenSSH's one line, which Flower registers."""
    return key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )


def write_all(folder: Path, hidden: dict[str, bytes], readable: dict[str, bytes]) -> None:
    """Write new files, the hidden ones for their owner alone; all of them or none."""
    written: list[Path] = []
    try:
        for files, mode in ((hidden, 0o600), (readable, 0o644)):
            for name, content in files.items():
                write(folder / name, content, mode, written)
    except OSError as error:
        for path in written:
            path.unlink()
        error.filename = str(folder)
        raise


def write(path: Path, content: bytes, mode: int, written: list[Path]) -> None:
    """Write a new file that has its mode from the first byte, and add it to those `written`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    written.append(path)
    with os.fdopen(opened, "wb") as file:
        file.write(content)


def connect(folder: Path, name: str, address: str) -> None:
    """Add the connection to Flower's config.toml ($FLWR_HOME); ValueError if the name is taken."""
    path, text = connection(folder, name, address)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def connection(folder: Path, name: str, address: str) -> tuple[Path, str]:
    """Flower's config.toml, and its text with the connection in it."""
    path = Path(os.environ.get("FLWR_HOME", "~/.flwr")).expanduser() / "config.toml"
    text = path.read_text(encoding="utf-8") if path.exists() else '[superlink]\ndefault = "local"\n'
    root = (folder / "server" / "ca.crt").absolute()
    entry = f'[superlink.{name}]\naddress = "{address}"\nroot-certificates = "{root}"\n'
    if entry in text:
        return path, text
    if f"[superlink.{name}]" in text:
        raise ValueError(f"{path} has a connection '{name}' already: choose another --connection")
    return path, f"{text.rstrip()}\n\n{entry}"


def admit(folder: Path, connection: str) -> int:
    """Register every site's public key with the SuperLink; those already known stay as they are.

    A SuperLink that is still starting is waited for.
    """
    keys = sorted((folder / "server" / "nodes").glob("*.pub"))
    if not keys:
        raise FileNotFoundError(f"{folder} holds no sites' keys: run `fedtuners federation init`")
    until = time.monotonic() + PATIENCE
    for key in keys:
        while True:
            said = register(key, connection)
            if said in ("admitted", "was admitted before"):
                print(f"{key.stem}: {said}")
                break
            if time.monotonic() > until:
                print(f"{key.stem}: {said}", file=sys.stderr)
                return 1
            time.sleep(1)
    return 0


def register(key: Path, connection: str) -> str:
    """Register one public key under its file's name; returns what came of it."""
    flwr = str(Path(sys.executable).with_name("flwr"))
    command = [flwr, "supernode", "register", str(key), connection, "--name", key.stem]
    done = subprocess.run([*command, "--format", "json"], capture_output=True, text=True)
    said = " ".join((done.stdout + done.stderr).split())
    if done.returncode == 0 and json.loads(done.stdout).get("success"):
        return "admitted"
    return "was admitted before" if "already in use" in said else said
