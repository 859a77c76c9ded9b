"""Report cards of runs: facts gathered, and written as HTML, Markdown or JSON."""
