"""Environments: the tasks that gq knows, how they are made, and what their returns are compared with."""
