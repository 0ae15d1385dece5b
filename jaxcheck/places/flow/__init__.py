"""Which use of a leaf contributes how much of its gradient."""
