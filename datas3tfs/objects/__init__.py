"""S3: the adapter behind ports.WholeStore and ports.WholeStores. Start at stores.open_stores."""
