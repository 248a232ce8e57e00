"""One host-to-device copy a request: who owns which bytes until when."""
