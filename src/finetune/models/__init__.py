"""The model of a rank: building, loading, checks, partitioning, forward pass on packs, saving."""
