"""`millrace up`: Ray Serve, its replicas, and what runs beside them."""
