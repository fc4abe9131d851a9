"""How weights follow their gradients: one function for each optimizer, over the tensors that ZeRO leaves on a rank."""
