"""Training: losses, optimisers, and the loops that use them, over the unchanged model under `backends.gradient`."""
