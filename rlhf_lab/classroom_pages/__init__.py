"""What `rlhf-lab classroom` serves: two notebooks of one cell, and the page around them. Package data."""
