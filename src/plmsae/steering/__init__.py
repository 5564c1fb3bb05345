"""Steering: hold a latent at a value inside the running model and measure what its predictions do about it."""
