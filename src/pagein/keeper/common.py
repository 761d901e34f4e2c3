"""What the keeper and the kernel half both import: of the standard library, and nothing of ours."""

import argparse
import asyncio
import ctypes
import json
import logging
import mmap
import subprocess
import tempfile

__all__ = ["argparse", "asyncio", "ctypes", "json", "logging", "mmap", "subprocess", "tempfile"]
