"""The story on one laptop: three owners, a merged model, a farewell."""

from moiety.demo.story import tell

__all__ = ["tell"]
