"""What is reported of a gated network and of runs: tables as values, text and Markdown, figures, a page."""
