"""Many devices, one intent."""
