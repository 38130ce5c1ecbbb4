"""The HTTP face: schemas, routes, pages."""
