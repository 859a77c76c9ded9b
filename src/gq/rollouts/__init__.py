"""Episodes: running, collecting and summarising them."""
