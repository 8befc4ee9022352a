"""What the pages show of themselves: change it, commit, and deploy."""

VERSION = "1"
