"""Policies: from a run to what acts."""
