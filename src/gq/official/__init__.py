"""Checkpoints of the official TD-MPC2."""
