"""Many runs from one description: seeds, sweeps, search; on this machine or on a cluster."""
