"""`python -m llm`: the command line."""

import signal
import sys

# Ctrl-C amid an import leaves half a module, and a rank that others would wait for: until the
# command line is read it ends the process, without Python (main).
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from llm.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
