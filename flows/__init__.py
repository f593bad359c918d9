"""What runs, when and with which parameters: Prefect flows and the command line."""
