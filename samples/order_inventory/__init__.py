"""Orders and inventory: two services, two databases, and books that must balance."""
