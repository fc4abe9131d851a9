"""`capstan doctor`: facts are read from a cluster, and findings follow from them."""
