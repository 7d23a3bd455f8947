"""Images per second and core of every way to read them, beside others' loaders."""
