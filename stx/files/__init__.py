"""Files: written whole or not at all, read without executing anything; places, checksums and every exception."""
