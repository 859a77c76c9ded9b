"""The command line. It imports the engine inside commands only, so that help and completion are immediate."""

from gq.cli.app import app, main

__all__ = ["app", "main"]
