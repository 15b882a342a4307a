"""Inside an allocation: the batch script's helper, and a rank up to the start of its training."""
