"""The file by which the agent tells the node how it is. It is read without the packages that the agent needs."""

import json
import os
import time
from pathlib import Path
from typing import Any, Final

STATUS_FILE: Final = Path("/run/jumptable-agent/status.json")
# The file is written this often at least. What is older than three times that is of an agent that has died or hangs.
BEAT_SECONDS: Final = 10.0
_STALE_SECONDS: Final = 3 * BEAT_SECONDS


def boot_seconds() -> float:
    """Return the seconds since boot, those of sleep included. Nobody can set them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def read() -> dict[str, Any] | None:
    """Return what the agent of this node tells. None: there is no agent, or it may not be read.

    JUMPTABLE_AGENT_STATUS names another file. Beside the members of `app.agent.report.Report` there is `running`:
    whether the agent was heard of lately.
    """
    try:
        report = json.loads(Path(os.environ.get("JUMPTABLE_AGENT_STATUS") or STATUS_FILE).read_bytes())
        report["running"] = 0 <= boot_seconds() - report["beat"] <= _STALE_SECONDS
    except (OSError, ValueError, KeyError, TypeError):
        return None
    else:
        return dict(report)
