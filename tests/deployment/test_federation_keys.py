"""`fedtuners federation init`: what it makes, who may read it, and that it overwrites nothing."""

import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fedtuners.cli import federation
from fedtuners.cli.main import main
from fedtuners.privacy.secagg import Signer, Trusted

SITES = ["site-a", "site-b"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    federation.init(tmp_path / "keys", ["fl.example.org", "192.0.2.7"], SITES)
    return tmp_path / "keys"


def test_a_site_gets_what_it_needs_and_no_more(folder: Path) -> None:
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    own = {
        f"sites/{site}/{name}"
        for site in SITES
        for name in ("ca.crt", "node.key", "peers.pub", "executor.secret")
    }
    server = {"ca.crt", "server.crt", "server.key", "executor.secret"}
    server |= {f"nodes/{site}.pub" for site in SITES}
    assert files == own | {f"server/{name}" for name in server} | {"ca.key"}


def test_only_the_owner_reads_a_secret(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.suffix in (".key", ".secret"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_the_certificate_names_every_host_and_the_loopback(folder: Path) -> None:
    server, ca = x509.load_pem_x509_certificates((folder / "server/server.crt").read_bytes())
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"fl.example.org", "localhost"}
    addresses = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    assert addresses == {"192.0.2.7", "127.0.0.1"}
    server.verify_directly_issued_by(ca)
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_the_pair_serves_tls_to_whoever_trusts_the_ca(folder: Path) -> None:
    # Prepare: the two ends of a connection in memory.
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(folder / "server/server.crt", folder / "server/server.key")
    calling = ssl.create_default_context(cafile=str(folder / "sites/site-a/ca.crt"))
    calling.verify_flags |= ssl.VERIFY_X509_STRICT  # Python's default from 3.13 on
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = serving.wrap_bio(there, back, server_side=True)
    client = calling.wrap_bio(back, there, server_hostname="fl.example.org")

    # Execute
    waiting = {client, server}
    for _ in range(10):
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.discard(end)
            except ssl.SSLWantReadError:
                pass

    # Assert
    assert not waiting


def test_a_node_key_is_what_flower_takes(folder: Path) -> None:
    key = load_ssh_private_key((folder / "sites/site-a/node.key").read_bytes(), None)
    public = load_ssh_public_key((folder / "server/nodes/site-a.pub").read_bytes())
    assert key.public_key() == public
    assert key.curve.name == "secp384r1"  # type: ignore[union-attr]


def test_a_site_knows_the_keys_of_all_and_whose_each_is(folder: Path) -> None:
    peers = folder / "sites/site-b/peers.pub"
    signers = {Signer.load(folder / f"sites/{site}/node.key").name for site in SITES}
    assert Trusted.load(peers).keys == signers
    assert [line.split()[-1] for line in peers.read_text().splitlines()] == SITES


def test_every_secret_is_another(folder: Path) -> None:
    secrets = [path.read_bytes() for path in folder.rglob("*.secret")]
    assert len(set(secrets)) == len(secrets) == 3
    assert {len(secret) for secret in secrets} == {32}


def words(folder: Path, *more: str) -> list[str]:
    return ["federation", "init", "--host", "h", "--sites", "a", "--folder", str(folder), *more]


def test_keys_are_never_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for more, code in (((), 2), (("--keep",), 0)):
        with pytest.raises(SystemExit) as ended:
            main(words(folder, *more))
        assert ended.value.code == code
    assert "holds keys already, and new ones would lock out" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_connection_is_added_once_and_beside_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Prepare
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    (tmp_path / "config.toml").write_text('[superlink]\ndefault = "local"\n')

    # Execute
    for _ in range(2):
        federation.connect(tmp_path / "keys", "site", "127.0.0.1:8000")

    # Assert
    text = (tmp_path / "config.toml").read_text()
    assert text.count("[superlink.site]") == 1
    assert 'default = "local"' in text
    with pytest.raises(ValueError, match="has a connection 'site' already"):
        federation.connect(tmp_path / "keys", "site", "127.0.0.1:9000")


def test_a_connection_that_is_taken_is_said_before_keys_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    federation.connect(tmp_path / "other", "site", "127.0.0.1:8000")

    with pytest.raises(SystemExit) as ended:
        main(words(tmp_path / "keys"))

    assert ended.value.code == 2
    assert "choose another --connection" in capsys.readouterr().err
    assert not (tmp_path / "keys").exists()


def test_kept_keys_get_the_connection_that_a_killed_init_did_not_make(folder: Path) -> None:
    with pytest.raises(SystemExit):
        main(words(folder, "--keep"))

    assert "[superlink.site]" in (folder.parent / "flwr" / "config.toml").read_text()


@pytest.mark.parametrize("sites", [["a", "a"], ["../a"], ["a b"], [""]])
def test_names_that_cannot_be_folders_are_refused(tmp_path: Path, sites: list[str]) -> None:
    with pytest.raises(ValueError, match="a name is letters, digits"):
        federation.init(tmp_path / "keys", ["h"], sites)
    assert not (tmp_path / "keys").exists()
