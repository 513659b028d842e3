"""What waits: reading, writing and watching, on trio and the ports. No adapter's library in here."""
