"""Where it is wrong: the equation that a bad number comes from."""
