"""report.html of a run of any task, and the comparison of several runs: values of a page, drawings, and the HTML template."""
