"""The command line: it reads arguments, calls `flow`, draws what comes back, and picks the exit code."""

from pipeline.cli.app import main

__all__ = ["main"]
