"""What is measured: one module an experiment, and the session that resumes and records."""
