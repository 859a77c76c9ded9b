"""What runs and datasets look like: pictures, tables and terminal drawings."""
