"""What the commands do: from a configuration and data to a result."""
