"""What a node must pass before it confirms a change: a test run of a program on a packet, or a bound of a metric."""

import math

from app.agent.local import LocalService, is_transient
from app.client import Refused
from app.fleet_store.documents import Check, MetricCheck, PacketCheck


async def failed_check(service: LocalService, checks: tuple[Check, ...]) -> str | None:
    """Return what the first check that fails says, as a sentence. None: all of them pass."""
    for check in checks:
        try:
            text = await (_packet(service, check) if isinstance(check, PacketCheck) else _metric(service, check))
        except Refused as error:
            if is_transient(error):
                raise
            text = f"the check cannot be made: {error.detail}"
        if text is not None:
            return text
    return None


async def _packet(service: LocalService, check: PacketCheck) -> str | None:
    returned = await service.run(check.program, bytes.fromhex(check.packet))
    if returned == check.returned:
        return None
    return f"{check.program} returned {returned} for the packet {check.packet[:64]}, and not {check.returned}"


async def _metric(service: LocalService, check: MetricCheck) -> str | None:
    value = sample(await service.metrics(), check.metric)
    if value is None:
        return f"the service has no metric {check.metric}"
    if check.at_least is not None and not value >= check.at_least:
        return f"{check.metric} is {value:g}, and not {check.at_least:g} at least"
    if check.at_most is not None and not value <= check.at_most:
        return f"{check.metric} is {value:g}, and not {check.at_most:g} at most"
    return None


def sample(text: str, name: str) -> float | None:
    """Return a sample of metrics in the text format of Prometheus. None: there is none, or it is no number.

    Args:
        text: The metrics.
        name: The name of the sample with all its labels in any order, as in `jumptable_map_entries{map="a"}`.
    """
    # It is a megabyte, which an agent without such checks does not need.
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415

    try:
        [family] = text_string_to_metric_families(f"{name} 0\n")
        [wanted] = family.samples
    except (ValueError, KeyError, IndexError):
        return None
    for each in text_string_to_metric_families(text):
        for found in each.samples:
            if (found.name, found.labels) == (wanted.name, wanted.labels) and not math.isnan(found.value):
                return float(found.value)
    return None
