"""A request's way to the model and back, without any framework: protocols, guards, the ASGI application."""
