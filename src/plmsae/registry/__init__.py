"""The registry of trained SAEs: package, register, promote, load, report; and the tracking of stage runs (MLflow)."""
