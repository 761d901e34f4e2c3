"""The EROFS on-disk format: writer and reader."""
