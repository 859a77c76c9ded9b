"""Plans in a world model: making them, and executing them."""
