"""Runs and data on the Hugging Face Hub."""
