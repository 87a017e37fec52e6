"""What each command of `kwsd` does: from its options to an exit code. What is slow to import waits for its command."""
