"""What a kernel does to memory: by its twin on the host, by a launch on a GPU."""
