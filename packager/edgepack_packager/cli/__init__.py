"""The `edgepack` commands of the packager, a file each."""
