"""Where the work runs and what is stored: Ray, Arrow, fsspec. Never Prefect."""
