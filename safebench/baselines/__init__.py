"""Wraps TRL's own trainers; TRL is imported only when they are used."""
