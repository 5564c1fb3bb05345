"""The demo data of this repository and the tests' tiny fixture, made from collected public data."""
