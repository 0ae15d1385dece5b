"""Where NaN and infinity are born."""
