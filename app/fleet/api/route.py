"""Routes of the fleet: strict ones, which tell what goes wrong with etcd."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from app.api.json_members import parse_json
from app.api.openapi import COMMON, Responses
from app.api.openapi import problems as problems_of
from app.api.problems import HttpProblem
from app.api.routing import Handler, StrictRoute, read_json
from app.fleet_store.documents import BadDocument
from app.fleet_store.errors import EtcdError, OutcomeUnknown, PermissionDenied, Refused, VersionRefused

MAX_TABLE_BYTES: Final = 8 << 20  # of the body of a table

# Further codes of every route that asks etcd.
STORE: Final = ("store-unavailable", "store-refused", "store-version")


def problems(*codes: str) -> Responses:
    """Return the `responses` of a route of the fleet for its problems. Those of every route are added."""
    return problems_of(*codes, always=COMMON)


class FleetRoute(StrictRoute):
    """A strict route that turns errors of etcd into problems."""

    def get_route_handler(self) -> Handler:
        """Return what handles a request."""
        handle = super().get_route_handler()

        async def told(request: Request) -> Response:
            with etcd_errors_told():
                return await handle(request)

        return told


class FleetTableRoute(FleetRoute):
    """A route whose body is a table."""

    async def read_body(self, request: Request) -> Any:
        """Read the body of a request, and parse it."""
        return parse_json(await read_json(request, MAX_TABLE_BYTES))


@contextmanager
def etcd_errors_told() -> Iterator[None]:
    """Turn errors of etcd into problems.

    Raises:
        HttpProblem: store-unavailable, store-refused or store-version.
    """
    try:
        yield
    except VersionRefused as error:
        raise HttpProblem("store-version", str(error)) from error
    except OutcomeUnknown as error:
        detail = f"etcd has not answered, so the change may have been made; look before you repeat it: {error}"
        raise HttpProblem("store-unavailable", detail, facts={"outcome": "unknown"}) from error
    except (PermissionDenied, Refused) as error:
        raise HttpProblem("store-refused", f"etcd refuses the fleet's server: {error}") from error
    except EtcdError as error:
        raise HttpProblem("store-unavailable", f"etcd does not answer: {error}") from error
    except BadDocument as error:
        detail = f"etcd holds something that is not the fleet's: {error}; find who else writes below /jumptable/"
        raise HttpProblem("store-refused", detail) from error
