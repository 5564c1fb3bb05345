"""Training of sparse autoencoders on a stream of activations: exact to resume, and the same bytes every time."""
