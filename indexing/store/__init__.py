"""What an index consists of on disk: files, tables of rows, and the manifest that names them."""
