"""How ranks start: their processes, their place in the world, their nodes, their signals."""
