"""The families of networks, one paper a file, each with its table of names."""
