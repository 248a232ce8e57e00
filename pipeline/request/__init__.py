"""What moves: one row, one block, one buffer, one transfer."""
