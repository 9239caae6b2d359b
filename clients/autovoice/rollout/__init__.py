"""The switch from one release to the next: the wanted state, Envoy's files, and the servers behind it."""
