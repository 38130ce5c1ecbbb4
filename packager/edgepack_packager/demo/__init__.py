"""`edgepack demo`: the whole story on this machine, told by the real commands."""
