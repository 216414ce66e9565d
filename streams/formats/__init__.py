"""What a record may be written in, read into columns."""
