"""Runs on a whole stack while its parts are killed, cut off and lied to: `python -m tests.faults`."""
