"""The HTTP side: webhooks in, JSON out. Litestar's one home."""
