"""HTTPS, and clients that are known by their certificates."""

import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme

from tests.running import Service, running
from tests.test_exposed import configured, jumptable

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
    """A CA for the server, one for clients, and what they have issued."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.server, self.clients = folder, trustme.CA(), trustme.CA()
        self.clients.cert_pem.write_to_path(folder / "clients.pem")
        self.renew()

    def renew(self) -> None:
        """Another certificate for the server."""
        issued = self.server.issue_cert("127.0.0.1", "localhost")
        issued.private_key_pem.write_to_path(self.folder / "server.key")
        issued.cert_chain_pems[0].write_to_path(self.folder / "server.pem")

    def context(self, name: str | None = None, ca: trustme.CA | None = None) -> ssl.SSLContext:
        """That of a client, with a certificate for this name."""
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
    """What such a client is answered, once the service answers."""
    while True:
        try:
            with httpx.Client(verify=context) as client:
                return client.request(method, service.url + path).status_code
        except httpx.ConnectError as error:
            if "refused" not in str(error):
                raise
            assert service.process.poll() is None, "it ended"


ENTRY = "/maps/jump_table/entries/3?allow_missing=true"


def test_each_has_the_rights_of_its_name(service: Service, files: Files) -> None:
    deploy, watch = files.context("deploy.example.org"), files.context("watch@example.org")
    assert status(service, deploy, "DELETE", ENTRY) == 204
    assert status(service, deploy, "DELETE", "/maps/jump_table") == 403
    assert status(service, watch) == 200
    assert status(service, watch, "DELETE", ENTRY) == 403
    assert status(service, files.context("other.example.org")) == 403, "known, and without any right"
    assert status(service, files.context()) == 401, "without a certificate"
    line = service.wait_for(r'.*"outcome": ?"done".*"clear_entry".*')[0]
    assert "certificate:deploy" in line


def test_another_ca_is_not_taken(service: Service, files: Files) -> None:
    assert status(service, files.context()) == 401
    with pytest.raises(httpx.HTTPError):
        status(service, files.context("deploy.example.org", trustme.CA()))


def test_files_are_loaded_anew(service: Service, files: Files) -> None:
    def serial() -> int:
        with httpx.Client(verify=files.context()) as client, client.stream("GET", service.url + "/healthz") as response:
            certificate = response.extensions["network_stream"].get_extra_info("ssl_object").getpeercert()
            return int(certificate["serialNumber"], 16)

    assert status(service, files.context("deploy.example.org")) == 200
    first, old = serial(), files.context("deploy.example.org")
    (files.folder / "server.pem").write_text("nonsense")
    time.sleep(1.1)  # it looks once a second
    assert serial() == first, "what cannot be used is not used"
    files.renew()
    files.clients = trustme.CA()
    files.clients.cert_pem.write_to_path(files.folder / "clients.pem")
    time.sleep(1.1)
    assert serial() != first
    assert status(service, files.context("deploy.example.org")) == 200
    with pytest.raises(httpx.HTTPError):
        status(service, old)


def test_plain_http_gets_no_answer(service: Service, files: Files) -> None:
    assert status(service, files.context()) == 401
    with pytest.raises(httpx.HTTPError):
        httpx.get(service.url.replace("https", "http"))


def test_files_that_cannot_be_used(files: Files) -> None:
    (files.folder / "server.key").write_text("nonsense")
    config = configured(files.folder, CLIENTS.format(folder=files.folder), 'host = "127.0.0.1"\nport = 0')
    for command in ("serve", "check"):
        done = jumptable(command, "--config", str(config))
        assert done.returncode == 1
        assert "name PEM files that belong together" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
