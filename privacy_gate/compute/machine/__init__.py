"""Resources that jobs run on: device, memory, threads, temporary files."""
