"""Submit, follow and cancel runs; this code runs in the user's shell and does not need torch."""
