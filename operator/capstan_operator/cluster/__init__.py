"""Everything that talks to the world: the API server, the supervisors, and those who ask the operator how it is."""
