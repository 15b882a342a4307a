"""One command a table: this product beside its peers, the same work, the same run. Not part of the wheel."""
