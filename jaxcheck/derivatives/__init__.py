"""Every derivative of a function: forward, reverse, higher orders, and identities."""
