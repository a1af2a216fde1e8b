"""The whole story on one laptop."""
