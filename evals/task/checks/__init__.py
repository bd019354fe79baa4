"""What is wrong with a task's rows: leaks between splits, doubtful rows and labels, personal data. Nothing is changed here."""
