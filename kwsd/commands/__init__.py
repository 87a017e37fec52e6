"""What each command of `kwsd` does: from its options to an exit code. Each imports what it needs when it is called."""
