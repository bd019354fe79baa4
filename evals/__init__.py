"""What is asked, who answers it, and how good the answer was."""
