"""The command `jumptable`."""

import gc
import os
import signal
import sys
from typing import Any, cast


def main() -> None:
    """Run the command line."""
    if {"serve", "demo"} & set(sys.argv[1:2]) or sys.argv[1:3] == ["fleet", "serve"]:
        _prepare_service()
    from app.cli.main import run  # noqa: PLC0415

    run()


def _prepare_service() -> None:
    """Set what has to be set before the service is imported."""
    # What is imported lives as long as the process, and a table of 65,536 entries makes half a million objects without
    # cycles. With lower thresholds, the garbage collector would scan all of that repeatedly.
    gc.set_threshold(50_000, 20, 50)
    # structlog would import rich where that is installed, and pydantic look for plugins in all that is installed. That
    # takes 70 ms and 4 MB, and the service uses neither. The client's commands do use rich.
    cast("dict[str, Any]", sys.modules).setdefault("rich", None)
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # The imports take 0.2 s. A signal in that time has to end the service as later: with exit status 0, and also where
    # it is process 1 of a container, which ignores signals that it has no handler for.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))


if __name__ == "__main__":
    main()
