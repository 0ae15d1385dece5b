"""Is it right? Plan the differences, run them, compare, classify."""
