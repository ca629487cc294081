"""HTML reports with tables and figures."""
