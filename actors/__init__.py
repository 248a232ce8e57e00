"""What Ray adds to a stage, and nothing else: each class is built once in its actor and called with Arrow tables."""
