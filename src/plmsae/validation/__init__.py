"""Expectations over tables and stores: suites in plain code, run by Great Expectations, reported as one HTML file."""
