"""The model of a rank: built, loaded, checked, partitioned, called on packs, and saved."""
