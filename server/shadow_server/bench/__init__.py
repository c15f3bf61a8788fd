"""Load for a running server, and what its clients saw of it: `shadowserve bench`."""
