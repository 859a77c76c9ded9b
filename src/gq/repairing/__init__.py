"""What is wrong with a dataset, and a copy without it."""
