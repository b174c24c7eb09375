"""What a representation is worth: each measure a small module over cached features."""
