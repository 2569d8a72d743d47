"""The command `jumptable`."""

import signal
import sys


def main() -> None:
    """Run the command line."""
    # Before the imports, which take half a second: a signal meanwhile is to end the service as later, and as process 1
    # of a container it would be lost without a handler.
    if {"serve", "demo"} & set(sys.argv):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: sys.exit(0))
    from app.cli.main import cli  # noqa: PLC0415

    cli(prog_name="jumptable")


if __name__ == "__main__":
    main()
