"""The report: results read back, put together as a page of plain data, and written as one HTML file."""
