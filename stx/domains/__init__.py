"""Domains: sets of pictures of one kind, drawn or read from folders, with attributes and splits."""
