"""S3: the adapter behind ports.ObjectStore and ports.Stores. Start at stores.open_stores."""
