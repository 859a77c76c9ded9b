"""Correctors for executing plans over several steps."""
