"""HTTPS, and clients that certificates identify."""

import contextlib
import datetime as dt
import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.running import Service, connect, running
from tests.system.test_exposed import configured, jumptable

CLIENTS = """
[tls]
certificate = "{folder}/server.pem"
key = "{folder}/server.key"
client_ca = "{folder}/clients.pem"
[tls.clients.deploy]
san = "deploy.example.org"
role = "writer"
maps = ["jump_table"]
[tls.clients.watch]
san = "watch@example.org"
role = "reader"
"""


class Files:
    """A CA for the server's certificate, one for clients' certificates, and the files of [tls]."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.server, self.clients = folder, trustme.CA(), trustme.CA()
        self.clients.cert_pem.write_to_path(folder / "clients.pem")
        self.renew()

    def renew(self) -> None:
        """Replace the server's certificate."""
        issued = self.server.issue_cert("127.0.0.1", "localhost")
        issued.private_key_pem.write_to_path(self.folder / "server.key")
        issued.cert_chain_pems[0].write_to_path(self.folder / "server.pem")

    def context(self, name: str | None = None, ca: trustme.CA | None = None) -> ssl.SSLContext:
        """The TLS context of a client, with a certificate for this name; None: without one."""
        context = ssl.create_default_context()
        self.server.configure_trust(context)
        if name is not None:
            (ca or self.clients).issue_cert(name).configure_cert(context)
        return context


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture
def service(files: Files) -> Iterator[Service]:
    config = configured(
        files.folder, CLIENTS.format(folder=files.folder), 'host = "127.0.0.1"\nport = 0\nuser = "root"'
    )
    with running("serve", "--config", str(config)) as service:
        port = service.wait_for(r'"port": ?([0-9]+)')[1]
        service.url = f"https://127.0.0.1:{port}"
        yield service


def status(service: Service, context: ssl.SSLContext, method: str = "GET", path: str = "/maps") -> int:
    """The status of the answer to a client with this context. Waits until the service listens."""
    while True:
        try:
            with httpx.Client(verify=context) as client:
                return client.request(method, service.url + path).status_code
        except httpx.ConnectError as error:
            if "refused" not in str(error):
                raise
            assert service.process.poll() is None, "it ended"


ENTRY = "/maps/jump_table/entries/3?allow_missing=true"


def test_a_client_has_the_rights_of_the_name_in_its_certificate(service: Service, files: Files) -> None:
    deploy, watch = files.context("deploy.example.org"), files.context("watch@example.org")
    assert status(service, deploy, "DELETE", ENTRY) == 204
    assert status(service, deploy, "DELETE", "/maps/jump_table") == 403
    assert status(service, watch) == 200
    assert status(service, watch, "DELETE", ENTRY) == 403
    assert status(service, files.context("other.example.org")) == 403, "identified, but without any right"
    assert status(service, files.context()) == 401, "without a certificate"
    line = service.wait_for(r'.*"outcome": ?"done".*"clear_entry".*')[0]
    assert "certificate:deploy" in line


def test_a_certificate_of_another_ca_is_refused(service: Service, files: Files) -> None:
    assert status(service, files.context()) == 401
    with pytest.raises(httpx.HTTPError):
        status(service, files.context("deploy.example.org", trustme.CA()))


def context_for(files: Files, *names: x509.GeneralName, days: int = 1) -> ssl.SSLContext:
    """The TLS context of a client with a certificate of the right CA for these names, valid for so many days."""
    key = ec.generate_private_key(ec.SECP256R1())
    signer = serialization.load_pem_private_key(files.clients.private_key_pem.bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    issuer = x509.load_pem_x509_certificate(files.clients.cert_pem.bytes())
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "deploy.example.org")]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=2))
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = files.folder / "client.pem"
    file.write_bytes(pem + made.public_bytes(serialization.Encoding.PEM))
    context = files.context()
    context.load_cert_chain(file)
    return context


def test_a_name_counts_only_if_it_has_the_form_of_its_kind(service: Service, files: Files) -> None:
    name = "deploy.example.org"
    among_others = context_for(files, x509.DNSName("other.example.org"), x509.DNSName(name))
    assert status(service, among_others) == 200
    for names, expected in {
        (x509.UniformResourceIdentifier(name),): 401,
        (x509.RFC822Name(f"{name}@{name}"),): 403,
        (x509.DNSName("*.example.org"),): 403,
        (x509.DNSName("watch@example.org"),): 401,
        (x509.DNSName(f"{name}\0.evil.example"),): 403,
        (x509.DNSName(f"{name}."),): 403,
        (x509.DNSName(f" {name}"),): 403,
        (x509.IPAddress(ipaddress.ip_address("127.0.0.1")),): 401,
        (x509.DirectoryName(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])),): 401,
        (x509.RegisteredID(x509.ObjectIdentifier("1.2.3.4")),): 401,
    }.items():
        assert status(service, context_for(files, *names)) == expected, names


def test_an_expired_certificate_is_refused(service: Service, files: Files) -> None:
    assert status(service, files.context()) == 401
    with pytest.raises(httpx.HTTPError):
        status(service, context_for(files, x509.DNSName("deploy.example.org"), days=-1))


def test_changed_files_are_loaded_without_a_restart(service: Service, files: Files) -> None:
    def serial() -> int:
        with httpx.Client(verify=files.context()) as client, client.stream("GET", service.url + "/healthz") as response:
            certificate = response.extensions["network_stream"].get_extra_info("ssl_object").getpeercert()
            return int(certificate["serialNumber"], 16)

    assert status(service, files.context("deploy.example.org")) == 200
    first, old = serial(), files.context("deploy.example.org")
    (files.folder / "server.pem").write_text("nonsense")
    time.sleep(1.1)  # files are checked once a second
    assert serial() == first, "an unusable file changes nothing"
    files.renew()
    files.clients = trustme.CA()
    files.clients.cert_pem.write_to_path(files.folder / "clients.pem")
    time.sleep(1.1)
    assert serial() != first
    assert status(service, files.context("deploy.example.org")) == 200
    with pytest.raises(httpx.HTTPError):
        status(service, old)


def test_plain_http_is_not_answered(service: Service, files: Files) -> None:
    assert status(service, files.context()) == 401
    with pytest.raises(httpx.HTTPError):
        httpx.get(service.url.replace("https", "http"))


def test_unusable_files_end_serve_and_check_with_the_remedy(files: Files) -> None:
    (files.folder / "server.key").write_text("nonsense")
    config = configured(files.folder, CLIENTS.format(folder=files.folder), 'host = "127.0.0.1"\nport = 0')
    for command in ("serve", "check"):
        done = jumptable(command, "--config", str(config))
        assert done.returncode == 1
        assert "name PEM files that belong together" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.field
@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n"])
def test_tls_handshakes_count_as_connections_and_end_in_time(files: Files, sent: bytes) -> None:
    """Field 32: handshakes that never end are outside all limits."""
    more = CLIENTS.format(folder=files.folder) + "[limits]\nconnections = 5\nheader_seconds = 4\n"
    config = configured(files.folder, more, 'host = "127.0.0.1"\nport = 0\nuser = "root"')
    with running("serve", "--config", str(config)) as service, contextlib.ExitStack() as opened:
        port = service.wait_for(r'"port": ?([0-9]+)')[1]
        service.url = f"https://127.0.0.1:{port}"
        assert status(service, files.context("deploy.example.org")) == 200
        began = time.monotonic()
        connections = [opened.enter_context(connect(service)) for _ in range(8)]
        for connection in connections:
            with contextlib.suppress(ConnectionError):
                connection.sendall(sent)
        closed_after = [until_closed_by_peer(connection) - began for connection in reversed(connections)]
        assert closed_after[-1] < 15
        if not sent.startswith(b"GET"):  # which ends the handshake at once
            assert closed_after[2] < 4 <= closed_after[-1] + 0.1
        assert status(service, files.context("deploy.example.org")) == 200
        assert not [line for line in service.lines if "Traceback" in line or '"error"' in line]


def until_closed_by_peer(connection: socket.socket) -> float:
    """The time when the other side has closed it."""
    with contextlib.suppress(ConnectionError):
        while connection.recv(65536):
            pass
    return time.monotonic()


@pytest.mark.field
def test_early_answer_over_tls_reaches_a_client_that_is_still_sending(service: Service, files: Files) -> None:
    """Field 18: an early answer is lost in a reset."""
    assert status(service, files.context("deploy.example.org")) == 200
    client = http.client.HTTPSConnection(
        "127.0.0.1", httpx.URL(service.url).port, timeout=20, context=files.context("deploy.example.org")
    )
    client.request("PUT", "/nowhere", b"x" * (20 << 20))
    assert client.getresponse().status == 404
    client.close()
