"""What follows a run beside the loop: each a component of its own, there if `spec.callbacks` names it."""
