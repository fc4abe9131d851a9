"""The API server: storage, verbs, watches, and the controllers that live in it."""
