"""What the compiler gets wrong, and the smallest part that shows it."""
