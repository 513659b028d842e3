"""What tests stand on: servers, memory twins of the ports, the fault proxy."""
