"""Reading and re-running JAX programs; the only room that knows JAX's insides."""
