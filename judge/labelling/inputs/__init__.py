"""What is labelled: image files, webdataset tars, Parquet and JSON lines, in local folders and behind fsspec URLs."""
