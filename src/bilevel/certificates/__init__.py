"""How wrong a hypergradient is."""
