"""`gq doctor`: what is wrong with this machine, the cache and the runs."""
