"""Reinforcement learning of tool-using language models: ELPO and its baselines."""

import signal
import sys

# Entry points import for seconds, in which Ctrl-C would show a traceback: end without one, until
# `cli.run` takes over. This is what `python -m` has for a program's name while it imports this.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
