"""Operations on memory: a kernel's twin does the work on the host, a launch does it on a GPU."""
