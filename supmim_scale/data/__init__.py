"""Input: JPEGs in WebDataset shards to normalised training views.

One index, one order, one pipeline: an index names every sample's bytes and labels, the order of
a run is a pure function of (seed, position), and one DALI pipeline turns bytes and a crop window
into a view. Nothing in it has hidden state, so a position is all that a resume needs.
"""
