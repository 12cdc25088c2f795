"""The report: one HTML file that shows an evaluation, without a server or a network."""
