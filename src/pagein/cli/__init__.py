"""The command line: one file a command. Importing it loads neither aiohttp nor rich."""
