"""What is written, so that it appears whole, once, and can be proven complete."""
