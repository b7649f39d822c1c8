"""TRL's own trainers, wrapped; imported when used."""
