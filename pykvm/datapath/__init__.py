"""The native data path for Python: queues, engines, event loops, limits and statistics."""
