"""One module a library, all with the contract of :mod:`peers.protocol`."""
