"""Container images where they are: registries and OCI layouts, as sources of verified bytes.

Importing this package is cheap: aiohttp is imported with `connections`.
"""
