"""The input path beside other loaders."""
