"""From a wrong gradient to the equations behind it."""
