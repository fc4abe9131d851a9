"""How weights follow their gradients, inside the compiled step: one function for each optimizer, over one array."""
