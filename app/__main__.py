"""The command `jumptable`."""

import signal
import sys


def main() -> None:
    """Run the command line."""
    # The imports below take half a second. A signal in that time has to end the service as later: with exit status 0,
    # and also where it is process 1 of a container, which ignores signals that it has no handler for.
    if {"serve", "demo"} & set(sys.argv[1:2]):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: sys.exit(0))
    from app.cli.main import run  # noqa: PLC0415

    run()


if __name__ == "__main__":
    main()
