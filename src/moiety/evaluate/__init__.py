"""Is it good: bits per byte of every mixture of experts on every text."""
