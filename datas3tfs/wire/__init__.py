"""What goes over the wire between the HTTP API and its clients: models shared by both, and nothing else."""
