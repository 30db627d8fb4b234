"""halfmsg.coordinator: the service that keeps half messages and hands out committed ones."""
