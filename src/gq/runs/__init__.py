"""Run folders: checkpoints, records, cards."""
