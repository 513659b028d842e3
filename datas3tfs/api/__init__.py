"""The HTTP API: FastAPI on trio. Routes are data (operations.py); all of them run one way (running.py)."""
