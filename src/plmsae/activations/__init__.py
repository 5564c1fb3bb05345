"""The activation store: write, verify, shuffle, stream and resume (DESIGN, What travels between stages)."""
