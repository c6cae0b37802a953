"""Networks in files: ours, those of the public implementations, and the way between them."""
