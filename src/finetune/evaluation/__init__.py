"""What a model scores."""
