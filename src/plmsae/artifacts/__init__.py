"""Manifests, atomic writes and checksums: how anything gets to disk and how its reader knows that it is whole."""
