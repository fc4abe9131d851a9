"""Open-loop load on an HTTP service: requests are due at times that the answers have no part in."""
