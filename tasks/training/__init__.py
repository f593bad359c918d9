"""Training the adapters: the plan, the data, the run on Ray Train, what is measured on the way."""
