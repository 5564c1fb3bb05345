"""What a run will take before it runs: arithmetic only, no weights, no network, no torch."""
