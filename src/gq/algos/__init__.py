"""What learns: losses and updates, and how their policies act."""
