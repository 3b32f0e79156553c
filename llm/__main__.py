"""`python -m llm`: the command line."""

import signal
import sys

# Ctrl-C amid an import leaves half a module, and a rank that others would wait for: until the
# command line is read it ends the process, without Python (main).
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from llm.cli import main  # noqa: E402


class Ended(KeyboardInterrupt):
    """By another signal, which then is as Ctrl-C: no temporary file stays."""

    def __init__(self, number: int):
        self.signal = number


def end(number, frame):
    raise Ended(number)


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)
    sys.exit(main())
