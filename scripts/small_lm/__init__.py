"""Split sequences by homology, train a small ESM-2-style language model on them, and assess it."""
