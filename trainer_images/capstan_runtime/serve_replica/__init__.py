"""The first process of a serving pod, and the one-node Ray Serve that keeps its replica alive."""
