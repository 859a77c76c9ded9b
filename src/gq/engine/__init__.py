"""From a configuration to a finished run: loops, checkpoints, evaluation of runs."""
