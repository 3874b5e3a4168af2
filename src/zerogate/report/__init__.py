"""What is said of a gated network: tables, text, pictures."""
