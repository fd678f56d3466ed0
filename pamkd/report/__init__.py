"""The report of a run: one HTML page that needs nothing but a browser."""

from pamkd.report.write import ReportConfig, report, write_comparison, write_report

__all__ = ["ReportConfig", "report", "write_comparison", "write_report"]
