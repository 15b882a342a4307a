"""Models: building, loading, checks, partitioning, the forward pass on packs, and saving."""
