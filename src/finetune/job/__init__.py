"""Code that runs inside a job: the batch script's helper, and the ranks until training starts."""
