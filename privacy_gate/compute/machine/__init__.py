"""What work runs on: device, memory, threads, temporary files."""
