"""Samples: real services that use halfmsg the way a user does."""
