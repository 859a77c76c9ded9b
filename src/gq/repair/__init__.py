"""Findings in data files, and their repair."""
