"""How fast a run is, what it runs on, and how it is told to people."""
