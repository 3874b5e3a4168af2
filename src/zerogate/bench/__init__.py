"""Tables of results: `zerogate bench TABLE` trains what a table lacks, records every run in a file, and renders."""
