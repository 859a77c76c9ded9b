"""Runs and datasets on the Hugging Face Hub."""
