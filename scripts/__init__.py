"""Programs that make what the repository ships; run as `python -m scripts.<folder>.<program>` from its root."""
