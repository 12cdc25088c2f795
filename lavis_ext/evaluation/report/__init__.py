"""The report: a self-contained HTML file that shows an evaluation."""
