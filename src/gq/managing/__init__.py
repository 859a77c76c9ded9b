"""Runs as a user looks after them: listed, shown, renamed, removed."""
