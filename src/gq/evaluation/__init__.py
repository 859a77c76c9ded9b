"""Episodes of policies, and what can be said of their returns."""
