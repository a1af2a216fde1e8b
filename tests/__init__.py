"""Claims about moiety, each with an oracle."""
