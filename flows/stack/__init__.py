"""A whole stack on the loopback interface: what runs the nights of a cluster, on one machine.

Prefect's server with PostgreSQL (or SQLite), its worker, a Ray head and nodes, S3, and, where they are installed,
Prometheus and Grafana. Supervisor keeps them running; settings say where they are; parts say how each is started and
when it is healthy.
"""
