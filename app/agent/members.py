"""The versions of etcd's members, which a node may ask for by HTTP alone, and why a member cannot be reached.

Some versions let a node write the keys of others. A node does not use those.
"""

import http.client
import json
import ssl
from typing import Final

from app.agent.settings import Etcd as EtcdSettings
from app.fleet_store.versions import version_warning

_SECONDS: Final = 3.0
_MAX_BYTES: Final = 4096


class Unreachable(Exception):
    """No member answers. The text is one line: why the last one does not."""


def version_warnings(settings: EtcdSettings) -> list[str]:
    """Return a warning for each member whose version lets nodes read the keys of others. Who is down is left out.

    Raises:
        VersionRefused: A version lets nodes write the keys of others.
        Unreachable: No member answers.
    """
    versions, reason = dict[str, str](), ""
    try:
        context = ssl.create_default_context(cafile=settings.ca)
        context.load_cert_chain(settings.certificate, settings.key)
    except OSError as error:
        message = f"the certificates cannot be used: {error}"
        raise Unreachable(message) from error
    for endpoint in settings.endpoints:
        try:
            versions[endpoint] = _version(endpoint, context)
        except ssl.SSLCertVerificationError as error:
            reason = f"{endpoint}: its certificate is not accepted: {error.verify_message}; check the CA and the clock"
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = f"{endpoint}: {error}"
    if not versions:
        raise Unreachable(reason)
    found = [version_warning(version, endpoint) for endpoint, version in versions.items()]
    return [each for each in found if each is not None]


def _version(endpoint: str, context: ssl.SSLContext) -> str:
    host, _, port = endpoint.rpartition(":")
    connection = http.client.HTTPSConnection(host.strip("[]"), int(port), timeout=_SECONDS, context=context)
    try:
        connection.request("GET", "/version")
        answer = connection.getresponse()
        return str(json.loads(answer.read(_MAX_BYTES))["etcdserver"])
    except (KeyError, TypeError) as error:
        raise ValueError("it does not answer as etcd does") from error
    finally:
        connection.close()
