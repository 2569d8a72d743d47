"""The command `jumptable`."""

import gc
import os
import signal
import sys
from typing import Any, cast


def main() -> None:
    """Run the command line."""
    # What is imported lives as long as the process, and a table of 65,536 entries makes half a million objects without
    # cycles. With lower thresholds, the garbage collector would scan all of that repeatedly.
    gc.set_threshold(50_000, 20, 50)
    # structlog would import rich where that is installed, and pydantic look for plugins in all that is installed. That
    # takes 70 ms and 4 MB, and the service uses neither.
    cast("dict[str, Any]", sys.modules).setdefault("rich", None)
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # The imports below take 0.2 s. A signal in that time has to end the service as later: with exit status 0, and also
    # where it is process 1 of a container, which ignores signals that it has no handler for.
    if {"serve", "demo"} & set(sys.argv):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: sys.exit(0))
    from app.cli.main import cli  # noqa: PLC0415

    cli(prog_name="jumptable")


if __name__ == "__main__":
    main()
