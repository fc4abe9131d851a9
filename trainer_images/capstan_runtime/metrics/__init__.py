"""How fast a run is and how it is told to people."""
